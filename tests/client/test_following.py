"""Ctrl-C while the shell follows a job: the job goes on, and the shell says so."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.app.conftest import running
from tests.app.service import Service
from tests.client.conftest import SPOLIA


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[Service]:
    """A service of this process, whose followers can be seen."""
    with running(Settings(data_dir=tmp_path_factory.mktemp("here"), threads=1, merge_workers=1)) as service:
        yield service


def _heed_interrupts() -> None:
    """As in a terminal, also where the tests run in the background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("words", ["job wait", "job wait --log", "job log --follow", "jobs --follow"])
def test_ctrl_c_says_that_the_job_goes_on(here: Service, words: str) -> None:
    job, _ = here.house.jobs.enqueue("of another release", {})  # no worker takes it up
    env = os.environ | {"SPOLIA_URL": f"http://127.0.0.1:{here.port}", "NO_COLOR": "1"}
    command = [SPOLIA, *words.split(), job.id]
    shell = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts)
    until = time.monotonic() + 60
    while job.id not in here.house.job_watch._followers and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)  # the answer's first lines are on their way
    shell.send_signal(signal.SIGINT)
    _, said = shell.communicate(timeout=60)
    assert shell.returncode == 130
    assert f"Job {job.id} goes on: `spolia job wait {job.id}` follows it" in said
    assert f"`spolia job cancel {job.id}` stops it" in said
    assert here.house.jobs.get(job.id).state == "queued"
