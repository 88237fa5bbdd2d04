"""The Python client's calls about API keys, who one is, and the audit log."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from app.client_http import Json, Transport


class KeyVerbs:
    """What `Client` can ask of /v1/keys, /v1/whoami and /v1/audit."""

    _http: Transport

    def create_key(
        self,
        name: str,
        grants: Mapping[str, Sequence[str]],
        *,
        expires_at: datetime | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Json:
        """Make a key; its text is the member `key`, which no later answer has.

        `grants`: scopes (read, write, merge, generate, admin) by namespace, `*` for every one. `limits`: stored_bytes,
        adapters, jobs, requests_per_minute, tokens_per_minute.
        """
        body: Json = {"name": name, "grants": {place: list(scopes) for place, scopes in grants.items()}}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        if limits:
            body["limits"] = dict(limits)
        return self._http.json("POST", "/v1/keys", json=body)

    def keys(self) -> Iterator[Json]:
        """Every key, newest first, revoked ones too."""
        return self._http.pages("/v1/keys", {})

    def revoke_key(self, key_id: str) -> None:
        """End a key for good; what it published stays."""
        self._http.json("DELETE", f"/v1/keys/{key_id}")

    def whoami(self) -> Json:
        """Who this client is to the service, what it may do where, and the limits that hold for it."""
        return self._http.json("GET", "/v1/whoami")

    def audit(
        self,
        *,
        key: str | None = None,
        action: str | None = None,
        namespace: str | None = None,
        adapter: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[Json]:
        """Changes, newest first: `action` on `target`, by `actor`, and what was there `before` and `after`."""
        times = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        asked = {"key": key, "action": action, "namespace": namespace, "adapter": adapter, **times}
        return self._http.pages("/v1/audit", asked)
