"""The process around the application: settings, where it listens, its worker."""

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.data_folder import DataFolderInUse, only_service
from app.identity.exposure import RemoteRefused, check_exposure
from app.jobs import EmbeddedJobEngine, open_job_engine
from app.loopback import is_loopback
from app.main import serve
from app.readiness import check_all
from app.settings import Settings
from app.shelves import open_shelves
from serving.engine import Engine
from tests.app.service import Service, small_adapter, soon
from tests.e2e.process import SPOLIA, worker_of


def test_settings_travel_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(data_dir=tmp_path, port=1234, allow_remote=True, base_model="a/b", staging_max_age_s=1.5)
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == given


def test_every_setting_is_described_and_frozen() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="less than or equal to 65535"):
        Settings(port=70000)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "", "127.0.0.1.example.org"])
def test_nobody_listens_beyond_loopback_by_accident(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(RemoteRefused, match="no API key is needed"):
        serve(Settings(host=host, data_dir=tmp_path / "untouched"))
    assert not (tmp_path / "untouched").exists()


def test_beyond_loopback_it_listens_once_there_is_a_key(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", data_dir=tmp_path)
    check_exposure(settings.model_copy(update={"require_keys": True}))
    check_exposure(settings.model_copy(update={"allow_remote": True}))
    shelves = open_shelves(settings)
    shelves.database.migrate()
    with pytest.raises(RemoteRefused):
        check_exposure(settings)
    key, _ = shelves.keys.create("root", {"*": ["admin"]})
    check_exposure(settings)
    shelves.keys.revoke(key.id)
    shelves.database.close()
    check_exposure(settings)  # it still asks: a door that was shut does not open by itself


def test_ready_says_what_was_checked(service: Service) -> None:
    names = ("database", "migrations", "blobs", "disk", "generation", "worker")
    soon(lambda: service.http.get("/readyz").status_code == 200)  # the worker takes a moment to start
    assert service.http.get("/readyz").json() == {"ready": True, "checks": dict.fromkeys(names, "ok")}
    assert service.http.get("/healthz").json() == {"status": "ok"}


def test_a_service_whose_engine_has_ended_is_not_ready(service: Service) -> None:
    base = service.house.base
    ended = Engine(base, service.house.shelves.adapter_loader(), pool_bytes=1, max_rows=1, max_waiting=1)
    ended.start()
    ended.close()
    soon(lambda: service.http.get("/readyz").status_code == 200)
    checks = asyncio.run(check_all(replace(service.house, engine=ended)))
    assert (
        checks.pop("generation") == "nothing can generate now: the engine's thread has ended, or no vLLM server is up"
    )
    assert set(checks.values()) == {"ok"}


def test_a_worker_that_dies_is_started_again_and_there_is_only_one(service: Service, tmp_path: Path) -> None:
    service.push("worker/a", small_adapter(tmp_path))
    service.merge(name="worker/before", sources=["worker/a"])  # the worker is up
    lock = service.house.settings.data_dir / "worker.lock"
    with lock.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first = worker_of(os.getpid())
    assert first is not None
    os.kill(first, signal.SIGKILL)
    job = service.http.post("/v1/merges", json={"name": "worker/after", "sources": ["worker/a"], "method": "cat"})
    assert service.wait(job.json())["state"] == "succeeded"
    assert worker_of(os.getpid()) not in (None, first)
    soon(lambda: service.http.get("/readyz").json()["ready"])


def test_a_worker_that_cannot_run_is_not_started_without_end() -> None:
    engine = EmbeddedJobEngine({"SPOLIA_PORT": "nonsense"})
    engine.start()
    deadline = time.monotonic() + 20
    while engine.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    engine.wake()
    engine.close()
    assert not engine.alive()


def test_a_second_service_on_one_data_folder_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with only_service(settings):
        with pytest.raises(DataFolderInUse, match="Another service already runs on the data folder"):
            serve(settings)
        answer = subprocess.run(
            [SPOLIA, "serve", "--data-dir", str(settings.data_dir), "--port", "0"], capture_output=True, check=False
        )
    assert answer.returncode == 1
    assert answer.stderr.decode().count("\n") == 1
    with only_service(settings):
        pass


def test_distributed_jobs_need_a_database_that_can_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs a PostgreSQL database"):
        Settings(data_dir=tmp_path, jobs="distributed")
    shared = Settings(data_dir=tmp_path, jobs="distributed", database_url="postgresql+psycopg://nowhere/spolia")
    engine = open_job_engine(shared)
    engine.start()
    engine.wake()
    assert engine.alive()
    engine.close()


@pytest.mark.parametrize("verb", ["serve", "worker", "gc", "keys list --local"])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"SPOLIA_PORT": "abc"}, "SPOLIA_PORT is 'abc': input should be a valid integer"),
        (
            {"SPOLIA_JOBS": "distributed", "SPOLIA_S3_SECRET_KEY": "hush"},
            "SPOLIA_JOBS=distributed needs a PostgreSQL database in SPOLIA_DATABASE_URL.",
        ),
        ({"SPOLIA_BLOBS": "bucket"}, "SPOLIA_BLOBS: 'bucket' is not of the form s3://bucket/prefix."),
    ],
)
def test_wrong_settings_are_named_by_every_verb_and_no_secret_is(
    verb: str, settings: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    environment = os.environ | {"SPOLIA_DATA_DIR": str(tmp_path)} | settings
    answer = subprocess.run([SPOLIA, *verb.split()], env=environment, capture_output=True, check=False, text=True)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"spolia: {sentence}")
    assert answer.stderr.count("\n") == 1
    assert "hush" not in answer.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "needs SPOLIA_JOBS=distributed"),
        (("--queues", "meals"), "no queue 'meals'"),
        (("--queues", " ,"), "at least one queue"),
    ],
)
def test_a_worker_that_cannot_work_says_why(options: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    settings = {"SPOLIA_DATA_DIR": str(tmp_path)}
    if options:
        settings |= {"SPOLIA_JOBS": "distributed", "SPOLIA_DATABASE_URL": "postgresql+psycopg://nowhere/spolia"}
    answer = subprocess.run([SPOLIA, "worker", *options], env=os.environ | settings, capture_output=True, check=False)
    assert answer.returncode == 2
    assert sentence in answer.stderr.decode()
