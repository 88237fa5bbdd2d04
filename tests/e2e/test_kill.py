"""kill -9 of server and worker at fifteen random moments during uploads and merges: nothing lost or half-visible."""

import hashlib
import json
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.e2e.process import ServerProcess
from tests.factory import write_adapter

KILLS_OF_SERVER, KILLS_OF_WORKER = 3, 12
WIDE = {f"layers.{i:03d}.proj": (512, 384) for i in range(120)}
RECORD_BYTES = 2 * 16 * (512 + 384)  # of one finished module, about
SMALL = {"layers.000.proj": (24, 16), "layers.001.proj": (24, 16)}


def whole_records(journal: bytes) -> int:
    """Length in bytes of the journal's whole records: [8 bytes size][head][payload][sha256]."""
    end = 0
    while True:
        head_bytes = int.from_bytes(journal[end : end + 8], "little")
        raw = journal[end + 8 : end + 8 + head_bytes]
        if not head_bytes or len(raw) < head_bytes:
            return end
        stop = end + 8 + head_bytes + json.loads(raw)["payload_bytes"]
        if journal[stop : stop + 32] != hashlib.sha256(journal[end:stop]).digest():
            return end
        end = stop + 32


class Users:
    """Two users who go on working, whatever happens: what the service acknowledged is written down."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.uploads: dict[str, str] = {}  # ref -> digest
        self.jobs: dict[str, str] = {}  # name -> job id
        self.refused: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._upload, self._merge)]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _insist(self, ask: Callable[..., httpx.Response], *args: Any, **options: Any) -> Any:
        """Ask until an answer comes."""
        while not self._over.is_set():
            try:
                answer = ask(*args, **options)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 201, 202):
                return answer.json()
            self.refused.append(answer.text)
        return None

    def _upload(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            adapter = write_adapter(self.folder / f"u{number}", SMALL, base="acme/wide", seed=number)
            version = self._insist(self.server.upload, f"users/u{number}", adapter)
            if version is not None:
                self.uploads[version["ref"]] = version["digest"]
            time.sleep(0.3)

    def _merge(self) -> None:
        sources = [f"kill/s{i}" for i in range(4)]
        for seed in range(100):
            recipe = {"name": f"kill/m{seed}", "sources": sources, "method": "lego", "seed": seed}
            job = self._insist(self.server.http.post, "/v1/merges", json=recipe)
            if job is None:
                return
            self.jobs[f"kill/m{seed}"] = job["id"]
            while not self._over.is_set() and job["state"] in ("queued", "running"):
                time.sleep(0.2)
                job = self._insist(self.server.http.get, f"/v1/jobs/{job['id']}") or job


@pytest.mark.timeout(900)  # dozens of starts, each of some seconds of processor time
def test_kills_lose_nothing(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start(settings={"SPOLIA_MAX_INTERRUPTIONS": "100"})
    server.wait_ready()
    for i in range(4):
        folder = write_adapter(tmp_path / f"s{i}", WIDE, rank=16, base="acme/wide", seed=i, dtype=torch.float16)
        assert server.upload(f"kill/s{i}", folder).status_code == 201
    users = Users(server, tmp_path)
    journals = Journals(server.data)
    rng = random.Random(20240607)
    victims = ["server"] * KILLS_OF_SERVER + ["worker"] * KILLS_OF_WORKER
    rng.shuffle(victims)
    users.begin()
    try:
        for victim in victims:
            early = rng.random() < 0.5
            if victim == "server":
                await_moment(server, journals, rng.uniform(0, 1.5) if early else None, rng)
                server.kill()
                journals.look()
                server.start()
            else:
                while server.worker() is None:
                    time.sleep(0.05)
                await_moment(server, journals, rng.uniform(0, 0.7) if early else None, rng)
                assert server.kill_worker()
                journals.look()
    finally:
        users.end()
    server.wait_ready()
    assert journals.kept_bytes > 0, "no merge was interrupted in its middle"
    assert not users.refused
    assert users.uploads
    check_jobs(server, users)
    check_versions(server, users)
    server.kill()
    server.start()
    server.wait_ready()
    check_files(server.data)
    worker = server.worker()
    assert server.stop() in (0, -signal.SIGTERM)
    assert not Path(f"/proc/{worker}").exists()


def await_moment(server: ServerProcess, journals: "Journals", pause_s: float | None, rng: random.Random) -> None:
    """A moment to kill at: after `pause_s`, or, without it, when some more modules of a merge are finished."""
    if pause_s is not None:
        time.sleep(pause_s)
        return
    wanted = rng.randrange(1, 12) * RECORD_BYTES
    deadline = time.monotonic() + 15
    size = journals.size()
    while wanted > 0 and time.monotonic() < deadline:
        time.sleep(rng.uniform(0, 0.05))
        before, size = size, journals.size()
        wanted -= max(size - before, 0)  # smaller again when a merge has ended


class Journals:
    """Watches that what a merge had finished before a kill stays as it was."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._seen: dict[Path, bytes] = {}
        self.kept_bytes = 0

    def size(self) -> int:
        """Bytes of all journals of running merges."""
        total = 0
        for path in self._data.glob("work/*/modules.journal"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def look(self) -> None:
        """Compare with the last look. To be called while nobody writes."""
        for path in self._data.glob("work/*/modules.journal"):
            now = path.read_bytes()
            before = self._seen.get(path, b"")
            assert now.startswith(before), "modules that were finished before a kill were done again"
            self.kept_bytes += len(before)
            self._seen[path] = now[: whole_records(now)]


def check_jobs(server: ServerProcess, users: Users) -> None:
    """Every job that was acknowledged ends well, with one version, and goes on where it was."""
    resumed = 0
    assert users.jobs
    for name, job_id in users.jobs.items():
        job = server.wait_job(job_id)
        assert job["state"] == "succeeded", job
        versions = server.get(f"/v1/adapters/{name}")["all_versions"]
        assert [version["ref"] for version in versions] == [job["result"]["ref"]]
        assert versions[0]["modules"] == len(WIDE)
        resumed += server.get(f"/v1/adapters/{name}/versions/1/report")["modules_resumed"]
    assert resumed > 0
    states = {job["state"] for job in server.get("/v1/jobs?limit=200")["items"]}
    assert states <= {"succeeded"}


def check_versions(server: ServerProcess, users: Users) -> None:
    """What was acknowledged is there; what is there is whole."""
    found: dict[str, str] = {}
    cursor = ""
    while True:
        page = server.get(f"/v1/adapters?limit=100{cursor}")
        for item in page["items"]:
            version = item["latest"]
            found[version["ref"]] = version["digest"]
            for file in version["files"]:
                path = f"/v1/adapters/{item['namespace']}/{item['name']}/versions/{version['version']}/files/"
                content = server.http.get(path + file["name"]).content
                assert hashlib.sha256(content).hexdigest() == file["sha256"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert users.uploads.items() <= found.items()


def check_files(data: Path) -> None:
    """After a start nothing half-written is left, and every blob is what it is called."""
    assert list((data / "blobs" / "staging").iterdir()) == []
    deadline = time.monotonic() + 10
    while list((data / "work").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)  # the worker sweeps it once it is up
    assert list((data / "work").iterdir()) == []
    blobs = {path.name: path for path in (data / "blobs" / "sha256").glob("??/*")}
    for name, path in blobs.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    with sqlite3.connect(data / "spolia.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("pragma foreign_key_check").fetchall() == []
        named = {row[0] for row in database.execute("select digest from version_files")}
    database.close()
    assert named <= blobs.keys()
