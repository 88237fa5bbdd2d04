"""API keys: who gets in, who does not and what they are told, how keys begin and end."""

import logging
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import Response

from app.api.keys import delete_key, post_key
from app.identity.caller import LOCAL, SCOPES
from app.identity.keyring import Keyring
from app.identity.rates import Rates
from app.identity.refusals import Unauthorized
from app.problems import Refusal
from app.schemas_keys import KeyBody
from app.settings import Settings
from app.shelves import open_shelves
from store.keys import split_key
from tests.app.callers import calling_with, holding, new_key
from tests.app.service import Service


def bare(keyed: Service, token: str | None = None) -> httpx.Client:
    """A client without a key, or with any text in its place."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=str(keyed.http.base_url), headers=headers)


def test_without_a_key_nothing_but_health_and_the_description_answers(keyed: Service) -> None:
    with bare(keyed) as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/openapi.json").status_code == 200
        for method, path in (("GET", "/v1/adapters"), ("POST", "/v1/merges"), ("GET", "/nowhere"), ("PUT", "/v1/x")):
            answer = http.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == 'Bearer realm="spolia"'
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:spolia:problem:unauthorized"


def test_openai_clients_find_the_message_where_they_look(keyed: Service) -> None:
    with bare(keyed) as http:
        assert "needs an API key" in http.get("/v1/models").json()["error"]["message"]


@pytest.mark.parametrize("token", ["none", "hf_abc", "spolia_", "spolia_abcdefghijkm_" + 43 * "x", "spolia_\xe9"])
def test_what_is_no_key_opens_nothing(keyed: Service, token: str) -> None:
    answer = httpx.get(
        f"{keyed.http.base_url}/v1/whoami", headers={"authorization": f"Bearer {token}".encode("latin-1")}
    )
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert token not in answer.text or token == "none"


def test_a_key_with_another_keys_secret_opens_nothing(keyed: Service) -> None:
    one, two = (new_key(keyed, {"*": ["read"]})["key"] for _ in range(2))
    crossed = one[: one.rindex("_", 0, 20) + 1] + two[20:]
    assert split_key(crossed) is not None
    with bare(keyed, crossed) as http:
        assert http.get("/v1/whoami").status_code == 401


def test_a_large_body_without_a_key_is_not_waited_for(keyed: Service) -> None:
    with bare(keyed) as http:
        answer = http.put(f"/v1/uploads/{'0' * 64}", content=bytes(8 << 20))
    assert answer.status_code == 401


def test_a_key_is_shown_once_and_kept_nowhere(keyed: Service) -> None:
    made = keyed.http.post("/v1/keys", json={"name": "ci", "grants": {"team": ["write", "read"]}})
    key = made.json()["key"]
    assert made.headers["cache-control"] == "no-store"
    assert re.fullmatch(r"spolia_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", key)
    assert made.json()["grants"] == {"team": ["read", "write"]}
    secret = key[20:]
    listed = keyed.http.get("/v1/keys").json()["items"][0]
    assert listed == {name: value for name, value in made.json().items() if name != "key"}
    assert secret not in keyed.http.get(f"/v1/keys/{listed['id']}").text
    assert secret not in keyed.http.get("/v1/audit").text
    stored = b"".join(path.read_bytes() for path in keyed.house.settings.data_dir.glob("spolia.db*"))
    assert listed["id"].encode() in stored
    assert secret.encode() not in stored


def test_secrets_are_in_no_log_and_no_error(keyed: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = new_key(keyed, {"team": ["read"]})
    secret, answers = made["key"][20:], []
    with calling_with(keyed, made["key"]) as caller, bare(keyed, made["key"] + "x") as mistyped:
        for http in (caller.http, mistyped):
            answers += [http.get("/v1/whoami"), http.get("/v1/keys"), http.get(f"/v1/adapters/{secret[:5]}/b")]
            answers += [http.post("/v1/merges", content=b"{"), http.post("/v1/merges", json={"x": 1})]
            answers += [http.post("/v1/chat/completions", json={"model": "team/none", "messages": []})]
    keyed.http.delete(f"/v1/keys/{made['id']}")
    with calling_with(keyed, made["key"]) as caller:
        answers += [caller.http.get("/v1/whoami")]
    assert {answer.status_code for answer in answers} >= {200, 401, 403, 404}
    assert not [answer.text for answer in answers if secret in answer.text or secret in str(answer.headers)]
    ours = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    )
    assert secret not in ours


def test_whoami_says_what_one_may_do(keyed: Service) -> None:
    made = new_key(keyed, {"team": ["merge", "read"]}, limits={"jobs": 3})
    with calling_with(keyed, made["key"]) as caller:
        found = caller.http.get("/v1/whoami").json()
    assert found["key_id"] == made["id"]
    assert found["grants"] == {"team": ["read", "merge"]}
    assert found["limits"]["jobs"] == 3
    assert found["usage"] == {"stored_bytes": 0, "adapters": 0, "jobs": 0}


def test_a_revoked_key_ends_at_once(keyed: Service) -> None:
    made = new_key(keyed, {"*": ["read"]})
    with calling_with(keyed, made["key"]) as caller:
        assert caller.http.get("/v1/whoami").status_code == 200
        assert keyed.http.delete(f"/v1/keys/{made['id']}").status_code == 204
        ended = caller.http.get("/v1/whoami")
    assert ended.status_code == 401
    assert ended.json()["detail"] == "The API key that was sent is revoked."
    assert keyed.http.get(f"/v1/keys/{made['id']}").json()["state"] == "revoked"
    assert keyed.http.delete("/v1/keys/nosuchkey").status_code == 404


def test_a_key_revoked_elsewhere_ends_within_the_time_that_it_is_remembered(keyed: Service) -> None:
    made = new_key(keyed, {"*": ["read"]})
    with calling_with(keyed, made["key"]) as caller:
        assert caller.http.get("/v1/whoami").status_code == 200
        keyed.house.shelves.keys.revoke(made["id"])  # as another process would
        until = time.monotonic() + keyed.house.settings.key_cache_s + 5
        while caller.http.get("/v1/adapters").status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_key_expires(keyed: Service) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    made = new_key(keyed, {"*": ["read"]}, expires_at=soon.isoformat())
    with calling_with(keyed, made["key"]) as caller:
        assert caller.http.get("/v1/whoami").status_code == 200
        while datetime.now(UTC) <= soon:
            time.sleep(0.05)
        ended = caller.http.get("/v1/whoami")
    assert ended.status_code == 401
    assert "expired" in ended.json()["detail"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "", "grants": {"a": ["read"]}},
        {"name": "x", "grants": {}},
        {"name": "x", "grants": {"a": []}},
        {"name": "x", "grants": {"a": ["fly"]}},
        {"name": "x", "grants": {"a/b": ["read"]}},
        {"name": "x", "grants": {"a": ["read"]}, "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "grants": {"a": ["read"]}, "expires_at": "2099-01-01T00:00:00"},
        {"name": "x", "grants": {"a": ["read"]}, "limits": {"jobs": -1}},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(keyed: Service, wrong: dict[str, object]) -> None:
    assert keyed.http.post("/v1/keys", json=wrong).status_code == 422


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != "admin"])
def test_only_who_administers_everything_manages_keys(keyed: Service, scope: str) -> None:
    with holding(keyed, {"*": [scope], "team": ["admin"]}) as caller:
        answer = caller.http.post("/v1/keys", json={"name": "x", "grants": {"team": ["read"]}})
        assert answer.status_code == 403
        assert answer.json()["scope"] == "admin"
        assert answer.json()["namespace"] == "*"
        assert caller.http.get("/v1/keys").status_code == 403
        assert caller.http.delete("/v1/keys/x").status_code == 403


def test_an_open_service_asks_for_keys_from_the_first_on(keyed: Service, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    shelves = open_shelves(settings)
    shelves.database.migrate()
    keyring = Keyring(shelves.keys, settings, Rates())
    house = replace(keyed.house, shelves=shelves, keyring=keyring)
    assert keyring.identify(None) == keyring.identify("none") == LOCAL
    with pytest.raises(Refusal, match="the first must hold 'admin'"):
        post_key(house, Response(), KeyBody(name="x", grants={"*": ["read"], "team": ["admin"]}))
    made = post_key(house, Response(), KeyBody(name="root", grants={"*": ["admin"]}))
    with pytest.raises(Unauthorized, match="needs an API key"):
        keyring.identify(None)
    assert keyring.identify(made["key"]).may("admin", "*")
    delete_key(house, made["id"])
    for again in (keyring, Keyring(shelves.keys, settings, Rates())):  # no key is left, and still one is needed
        with pytest.raises(Unauthorized):
            again.identify(None)
    shelves.database.close()
