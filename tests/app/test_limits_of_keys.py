"""What a key may use and keep: requests and tokens a minute, bytes, adapters, jobs."""

import json
import threading
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.identity.rates import Rates
from app.identity.refusals import RateLimited
from store.database import Database
from store.rate_counts import RateCounts
from tests.app.callers import holding
from tests.app.service import BASE, Service, small_adapter

EVERYTHING = {"*": ["read", "write", "merge", "generate"]}


@pytest.fixture(autouse=True)
def _amid_a_minute() -> None:
    """Counts fade from one minute to the next: a test that began a moment before would see that."""
    if time.time() % 60 > 55:
        time.sleep(60 - time.time() % 60)


def test_requests_a_minute(keyed: Service) -> None:
    with holding(keyed, EVERYTHING, limits={"requests_per_minute": 3}) as caller:
        answers = [caller.http.get("/v1/whoami") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0"]
        refused = caller.http.get("/v1/whoami")
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:spolia:problem:rate-limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert keyed.http.get("/v1/whoami").status_code == 200
    assert "ratelimit" not in keyed.http.get("/v1/whoami").headers


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute(keyed: Service, stream: bool) -> None:
    body: dict[str, Any] = {"model": BASE, "prompt": "a b c", "max_tokens": 4, "ignore_eos": True, "stream": stream}
    with holding(keyed, EVERYTHING, limits={"tokens_per_minute": 10}) as caller:
        assert caller.http.post("/v1/completions", json=body).status_code == 200  # 3 + 4
        assert caller.http.post("/v1/completions", json=body).status_code == 200  # 14 by its end: it was not known
        refused = caller.http.post("/v1/completions", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "tokens" in refused.json()["error"]["message"]
        assert caller.http.get("/v1/whoami").status_code == 200


def test_adapters_and_bytes(keyed: Service, tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in small_adapter(tmp_path / "a").iterdir())
    with holding(keyed, EVERYTHING, limits={"adapters": 2, "stored_bytes": 2 * size + 100}) as caller:
        caller.push("full/a", tmp_path / "a")
        caller.push("full/b", tmp_path / "a")
        third = caller.upload("full/c", tmp_path / "a")
        assert third.status_code == 403
        assert third.json()["type"] == "urn:spolia:problem:quota-exceeded"
        assert (third.json()["limit"], third.json()["used"]) == (2 * size + 100, 2 * size)
        assert caller.http.delete("/v1/adapters/full/b/versions/1").status_code == 204
        caller.push("full/c", tmp_path / "a")
        assert caller.http.get("/v1/whoami").json()["usage"]["adapters"] == 2
    with holding(keyed, EVERYTHING, limits={"adapters": 1}) as caller:
        caller.push("full/d", tmp_path / "a")
        caller.push("full/d", small_adapter(tmp_path / "b"))  # another version of the same
        refused = caller.upload("full/e", tmp_path / "a")
        assert refused.json()["detail"] == "This key may have 1 adapters and has 1; 1 more would be too many."


def test_jobs_at_once(keyed: Service, tmp_path: Path) -> None:
    keyed.push("busy/a", small_adapter(tmp_path / "a"))
    with holding(keyed, EVERYTHING, limits={"jobs": 1}) as caller:
        refused = []
        for weight in range(1, 9):
            recipe = {"name": "busy/b", "sources": [{"ref": "busy/a@1", "weight": weight / 8}], "method": "sum"}
            answer = caller.http.post("/v1/merges", json=recipe)
            if answer.status_code == 429:
                refused.append(answer)
        assert refused
        assert refused[0].json()["type"] == "urn:spolia:problem:job-quota-exceeded"
        assert refused[0].headers["retry-after"]


@pytest.fixture(params=["memory", "database"])
def rates(request: pytest.FixtureRequest, tmp_path: Path) -> Rates:
    """Both places that counts live in."""
    if request.param == "memory":
        return Rates()
    database = Database(f"sqlite:///{tmp_path / 'counts.db'}")
    database.migrate()
    return Rates(RateCounts(database))


def test_counters_admit_exactly_the_limit_and_each_key_its_own(rates: Rates) -> None:
    for _ in range(5):
        rates.take("requests", "one", 5)
    with pytest.raises(RateLimited, match="5 requests a minute"):
        rates.take("requests", "one", 5)
    rates.take("requests", "two", 5)
    rates.take("tokens", "one", 5)


def test_what_was_spent_counts_even_beyond_the_limit(rates: Rates) -> None:
    rates.check("tokens", "one", 10)
    rates.spend("tokens", "one", 10, 25)
    with pytest.raises(RateLimited) as caught:
        rates.check("tokens", "one", 10)
    assert caught.value.headers["ratelimit"].startswith('"tokens";r=0;')


def test_processes_on_one_database_share_what_is_left(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path / 'counts.db'}") for _ in range(2)]
    databases[0].migrate()
    admitted: list[int] = []

    def ask(rates: Rates) -> None:
        for _ in range(15):
            try:
                rates.take("requests", "one", 20)
                admitted.append(1)
            except RateLimited:
                pass

    threads = [threading.Thread(target=ask, args=(Rates(RateCounts(database)),)) for database in databases * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 20


def announce(caller: Service, data: bytes) -> httpx.Response:
    """Begin an upload in parts."""
    digest = b64encode(sha256(data).hexdigest().encode()).decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(data)), "Upload-Metadata": f"sha256 {digest}"}
    return caller.http.post("/v1/resumable-uploads", headers=headers)


def test_what_is_being_sent_and_what_nobody_published_counts(keyed: Service, tmp_path: Path) -> None:
    weights = [(small_adapter(tmp_path / name) / "adapter_model.safetensors").read_bytes() for name in "abc"]
    size, blobs = len(weights[0]), keyed.house.shelves.blobs
    digests = [sha256(data).hexdigest() for data in weights]
    with holding(keyed, EVERYTHING, limits={"stored_bytes": 2 * size + 2000}) as caller:
        first = announce(caller, weights[0])
        assert announce(caller, weights[0]).status_code == 201, "the same upload, found again"
        assert caller.http.put(f"/v1/uploads/{digests[1]}", content=weights[1]).status_code == 201
        lfs = {"operation": "upload", "objects": [{"oid": digests[2], "size": size}]}
        caller.http.post("/api/repos/create", json={"type": "model", "organization": "claimed", "name": "r"})
        for refused in (
            announce(caller, weights[2]),
            caller.http.put(f"/v1/uploads/{digests[2]}", content=weights[2]),
            caller.upload("claimed/c", tmp_path / "c"),
            caller.http.post("/claimed/r.git/info/lfs/objects/batch", json=lfs),
        ):
            assert refused.status_code == 403, refused.text
            assert refused.json()["type"] == "urn:spolia:problem:quota-exceeded"
            assert refused.json()["used"] == 2 * size
        assert not blobs.exists(digests[2])
        given_up = caller.http.delete(first.headers["location"], headers={"Tus-Resumable": "1.0.0"})
        assert given_up.status_code == 204
        config = json.loads((tmp_path / "b" / "adapter_config.json").read_bytes())
        body = {"config": config, "weights": f"sha256:{digests[1]}"}
        assert caller.http.post("/v1/adapters/claimed/b/versions", json=body).status_code == 201
        assert announce(caller, weights[2]).status_code == 201, "what is published counts once"


def test_what_a_draft_or_a_card_has_is_no_longer_counted_as_being_sent(keyed: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter", config={"inference_mode": True, "revision": "only here"})
    weights = (folder / "adapter_model.safetensors").read_bytes()
    config, digest = (folder / "adapter_config.json").read_bytes(), sha256(weights).hexdigest()
    cards = [f"{number} " * 1000 for number in range(3)]

    def commit(caller: Service, key: str, **value: Any) -> httpx.Response:
        lines = [{"key": "header", "value": {"summary": "s"}}, {"key": key, "value": value}]
        body = "\n".join(map(json.dumps, lines))
        return caller.http.post("/api/models/claimed/drafted/commit/main", content=body)

    room = len(weights) + len(config) + 2 * len(cards[0])
    with holding(keyed, EVERYTHING, limits={"stored_bytes": room}) as caller:
        made = caller.http.post("/api/repos/create", json={"organization": "claimed", "name": "drafted"})
        assert made.status_code == 200, made.text
        assert caller.http.put(f"/v1/uploads/{digest}", content=weights).status_code == 201
        answers = [commit(caller, "lfsFile", path="adapter_model.safetensors", algo="sha256", oid=digest)]
        answers.append(commit(caller, "file", path="adapter_config.json", content=config.decode(), encoding="utf-8"))
        answers += [commit(caller, "file", path="README.md", content=card, encoding="utf-8") for card in cards]
        assert [answer.status_code for answer in answers] == [200] * 5, answers[-1].text
        used = caller.http.get("/v1/whoami").json()["usage"]["stored_bytes"]
        assert used == len(weights) + len(config) + len(cards[0])
