"""Earlier releases as they run: their code unpacked, in a process of its own."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.upgrade.keep_releases import ARCHIVE

DRIVER = Path(__file__).parent / "old_release.py"


class Old:
    """A process of an earlier release on a data folder and a database: `old.push(…)` is `OldRelease.push` there."""

    def __init__(self, code: Path, data: Path, url: str | None) -> None:
        settings = {"SPOLIA_DATA_DIR": str(data), "SPOLIA_MERGE_WORKERS": "1"}
        if url is not None:
            settings["SPOLIA_DATABASE_URL"] = url
        environment = {**os.environ, **settings, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, str(DRIVER)], cwd=code, env=environment, text=True, **pipes)

    def __getattr__(self, verb: str) -> Any:
        def ask(**given: Any) -> Any:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            print(json.dumps([verb, given]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
            assert answer, "the earlier release ended: its log says why"
            return json.loads(answer)

        return ask

    def end(self) -> None:
        """End it, as the end of its input does."""
        with self.process:
            pass


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of each earlier release, by the number of its newest schema."""
    folder = tmp_path_factory.mktemp("releases")
    with tarfile.open(ARCHIVE) as kept:
        kept.extractall(folder, filter="data")
    return folder


@pytest.fixture(params=["0003-sqlite", "0006-postgresql"])
def release(request: pytest.FixtureRequest) -> str:
    """The newest schema that the earlier release knows."""
    return str(request.param).partition("-")[0]


@pytest.fixture
def url(release: str, request: pytest.FixtureRequest) -> Iterator[str | None]:
    """An empty database on PostgreSQL, if that release knows it; else its default."""
    if release == "0003":
        yield None
        return
    server = request.getfixturevalue("postgres")
    made = server.create_database()
    yield made
    server.drop_database(made)


@pytest.fixture
def old(releases: Path, release: str, url: str | None, tmp_path: Path) -> Iterator[Old]:
    """The earlier release, not opened yet."""
    process = Old(releases / release, tmp_path / "data", url)
    yield process
    process.end()
