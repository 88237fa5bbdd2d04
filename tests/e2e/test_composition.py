"""Several API processes and workers on one PostgreSQL and one S3 store are one service to whoever uses it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.main import settle_when_reachable
from app.settings import Settings
from app.shelves import open_shelves
from tests.e2e.composition import Composition, composition


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """The composition under test."""
    with composition(tmp_path_factory.mktemp("composition"), tiny_base) as found:
        yield found


@pytest.fixture
def namespace() -> str:
    """A namespace that nobody else uses, so that a composition may be tested again and again."""
    return f"e2e-{uuid4().hex[:12]}"


def test_what_one_process_took_the_other_has(whole: Composition, namespace: str, tmp_path: Path) -> None:
    folder = whole.adapter(tmp_path / "up", seed=1)
    with whole.client(0) as one, whole.client(1) as two:
        pushed = one.push(folder, f"{namespace}/a")
        assert two.push(folder, f"{namespace}/a")["ref"] == pushed["ref"] == f"{namespace}/a@1"
        two.pull(pushed["ref"], tmp_path / "down")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "down" / name).read_bytes() == (folder / name).read_bytes()


def test_pushes_through_both_are_numbered_one_after_the_other(
    whole: Composition, namespace: str, tmp_path: Path
) -> None:
    def push(number: int) -> int:
        with whole.client(number) as client:
            return int(client.push(whole.adapter(tmp_path / str(number), seed=number), f"{namespace}/many")["version"])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(push, range(16))) == list(range(1, 17))


def test_a_merge_is_done_by_a_worker_and_seen_everywhere(whole: Composition, namespace: str, tmp_path: Path) -> None:
    with whole.client(0) as one, whole.client(1) as two:
        for seed, name in enumerate("ab"):
            one.push(whole.adapter(tmp_path / name, seed=seed), f"{namespace}/{name}")
        job = one.merge(f"{namespace}/both", [f"{namespace}/a", f"{namespace}/b"], method="lego", rank=4)
        assert two.wait(job["id"])["state"] == "succeeded"
        assert two.job(job["id"])["result"]["ref"] == f"{namespace}/both@1"
        sources = [source["ref"] for source in two.show(f"{namespace}/both")["sources"]]
        assert sources == [f"{namespace}/a@1", f"{namespace}/b@1"]


def test_an_alias_moved_at_one_is_followed_by_the_other(whole: Composition, namespace: str, tmp_path: Path) -> None:
    ref = f"{namespace}/served"
    with whole.client(0) as one, whole.client(1) as two:
        for seed in (1, 2):
            one.push(whole.adapter(tmp_path / str(seed), seed=seed), ref)
        for version in (1, 2, 1):
            one.set_alias(ref, "production", version)
            answer = two.complete("The capital of France is", model=f"{ref}:production", max_tokens=4, temperature=0)
            assert [adapter["ref"] for adapter in answer["adapters"]] == [f"{ref}@{version}"]


def test_both_say_the_same(whole: Composition, namespace: str, tmp_path: Path) -> None:
    with whole.client(0) as one:
        ref = one.push(whole.adapter(tmp_path / "a", seed=3), f"{namespace}/a")["ref"]
    texts = set()
    for number in range(len(whole.urls)):
        with whole.client(number) as client:
            answer = client.complete("Once upon a time", model=ref, max_tokens=8, temperature=0)
            texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1


def test_the_hub_client_pulls_from_it(whole: Composition, namespace: str, tmp_path: Path) -> None:
    folder = whole.adapter(tmp_path / "up", seed=4)
    with whole.client(0) as client:
        client.push(folder, f"{namespace}/pulled")
    program = "import sys; from huggingface_hub import snapshot_download as get; print(get(sys.argv[1]))"
    hub = {"HF_ENDPOINT": whole.urls[-1], "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **hub} | ({"HF_TOKEN": whole.api_key} if whole.api_key else {})
    words = [sys.executable, "-c", program, f"{namespace}/pulled"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    got = Path(done.stdout.strip().splitlines()[-1])
    name = "adapter_model.safetensors"
    assert (got / name).read_bytes() == (folder / name).read_bytes()


def test_when_a_worker_is_killed_the_other_goes_on(whole: Composition, namespace: str, tmp_path: Path) -> None:
    if whole.cluster is None:  # somebody's: docker/production/check.sh kills containers of its own
        return
    with whole.client(0) as client:
        for seed, name in enumerate("ab"):
            client.push(whole.adapter(tmp_path / name, seed=seed), f"{namespace}/{name}")
        jobs = [
            client.merge(
                f"{namespace}/m{seed}", [f"{namespace}/a", f"{namespace}/b"], method="lego", seed=seed, wait=False
            )
            for seed in range(12)
        ]
        deadline = time.monotonic() + 60
        while all(client.job(job["id"])["state"] == "queued" for job in jobs):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        whole.cluster.workers[0].kill()
        try:
            assert [client.wait(job["id"])["state"] for job in jobs] == ["succeeded"] * len(jobs)
        finally:
            whole.cluster.workers[0].start()


def test_when_an_api_is_killed_the_other_answers(whole: Composition, namespace: str, tmp_path: Path) -> None:
    if whole.cluster is None:
        return
    with whole.client(0) as one:
        one.push(whole.adapter(tmp_path / "a", seed=5), f"{namespace}/a")
    whole.cluster.apis[0].kill()
    try:
        with whole.client(1) as two:
            assert two.show(f"{namespace}/a")["ref"] == f"{namespace}/a@1"
            two.push(whole.adapter(tmp_path / "b", seed=6), f"{namespace}/a")
    finally:
        whole.cluster.apis[0].start()
        whole.cluster.apis[0].wait_ready()
    with whole.client(0) as one:
        assert one.show(f"{namespace}/a")["version"] == 2


def test_a_start_before_the_database_waits_for_it_and_who_runs_heals(
    whole: Composition, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if whole.cluster is None:
        return
    postgres = whole.cluster.postgres
    shelves = open_shelves(Settings(data_dir=tmp_path, database_url=SecretStr(postgres.url)))
    postgres.stop()
    with ThreadPoolExecutor(1) as pool:
        try:
            settled = pool.submit(settle_when_reachable, shelves)
            while "database does not answer" not in caplog.text:
                assert not settled.done()
                time.sleep(0.05)
        finally:
            postgres.start()
        settled.result()
    shelves.database.close()
    for api in whole.cluster.apis:
        api.wait_ready()
