"""Requests turned down at the door: nobody known asks, or a known one asks too often."""

from collections.abc import Mapping

from app.problems import Refusal

REALM = 'Bearer realm="spolia"'


class Unauthorized(Refusal):
    """Without a key, or with one that opens nothing. `invalid`: a key was given."""

    def __init__(self, detail: str, *, invalid: bool) -> None:
        super().__init__(401, "unauthorized", detail)
        self.headers = {"www-authenticate": f'{REALM}, error="invalid_token"' if invalid else REALM}


class RateLimited(Refusal):
    """More requests or tokens than the key may use in a minute."""

    def __init__(self, what: str, limit: int, retry_after_s: int, headers: Mapping[str, str]) -> None:
        detail = f"This key may use {limit} {what} a minute, and has; try again in {retry_after_s} s."
        super().__init__(429, "rate-limited", detail, what=what, limit=limit, retry_after_s=retry_after_s)
        self.headers = {"retry-after": str(retry_after_s), **headers}


def no_key() -> Unauthorized:
    """Nothing was given."""
    return Unauthorized("This service needs an API key: send it as Authorization: Bearer spolia_...", invalid=False)


def unknown_key() -> Unauthorized:
    """What was given is no key of this service, or was mistyped."""
    return Unauthorized("The API key that was sent is not one of this service.", invalid=True)


def ended_key(state: str) -> Unauthorized:
    """The key was right once."""
    return Unauthorized(f"The API key that was sent is {state}.", invalid=True)
