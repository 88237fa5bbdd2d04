"""How a runner ends attempts: what passes is tried again, bad input is said at once, a lost lease is given up."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.job_runner import JobRunner
from app.problems import Refusal
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.work import Work
from merging.errors import MergeCancelled
from store.errors import StorageUnavailable
from store.jobs import Job
from tests.postgres import Server

Step = Callable[[Shelves, Job, Work], dict[str, object]]


@pytest.fixture(params=["sqlite", "postgresql"])
def shelves(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelves]:
    """Empty shelves; leases of a second where there are leases."""
    url = None
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        url = server.create_database()
    settings = Settings(data_dir=tmp_path, database_url=url, job_lease_s=1.0, max_job_failures=1)
    opened = open_shelves(settings)
    opened.database.migrate()
    yield opened
    opened.database.close()
    if url is not None:
        server.drop_database(url)


def run(shelves: Shelves, step: Step, runs: int = 1) -> Job:
    """Queue a job and run it `runs` times as soon as it may; the job as it is then."""
    runner = JobRunner(shelves, {"step": step}, worker="here")
    job, _ = shelves.jobs.enqueue("step", {})
    for _ in range(runs):
        while (taken := shelves.jobs.claim(job.id, "here")) is None:
            time.sleep(0.05)
        runner.run_one(taken)
    return shelves.jobs.get(job.id)


def test_what_passes_is_tried_again(shelves: Shelves) -> None:
    def away_at_first(_: Shelves, job: Job, work: Work) -> dict[str, object]:
        if job.attempts == 1:
            raise StorageUnavailable(1)
        return {"ref": "a/b@1"}

    job = run(shelves, away_at_first, runs=2)
    assert (job.state, job.attempts, job.failures, job.stalled) == ("succeeded", 2, 1, 0)
    assert [(cause["attempt"], cause["type"]) for cause in job.causes] == [
        (1, "urn:spolia:problem:storage-unavailable")
    ]
    said = [(line.attempt, line.level, line.text) for line in shelves.jobs.lines(job.id)]
    assert (1, "info", "Tried again in 1 s.") in said
    assert said[-1] == (2, "info", "Done.")


def test_what_never_passes_is_said_in_the_end(shelves: Shelves) -> None:
    def away(_: Shelves, job: Job, work: Work) -> dict[str, object]:
        raise StorageUnavailable(1)

    job = run(shelves, away, runs=2)
    assert (job.state, job.attempts, job.failures) == ("failed", 2, 1)
    assert job.error is not None
    assert job.error["type"] == "urn:spolia:problem:storage-unavailable"


def test_no_room_is_tried_again_where_another_machine_may_have_some(shelves: Shelves) -> None:
    def full(_: Shelves, job: Job, work: Work) -> dict[str, object]:
        work.folder.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    job = run(shelves, full)
    assert job.state == ("queued" if shelves.jobs.lease_s else "failed")
    assert [path for path in shelves.settings.work_dir.glob(f"{job.id}*") if path.is_dir()] == []
    assert (job.causes[0] if job.state == "queued" else job.error or {})["type"] == "urn:spolia:problem:storage-full"


def test_bad_input_is_not_tried_again(shelves: Shelves) -> None:
    def refused(_: Shelves, job: Job, work: Work) -> dict[str, object]:
        raise Refusal(409, "source-changed", "The source is another now.")

    job = run(shelves, refused)
    assert (job.state, job.attempts, job.causes) == ("failed", 1, ())
    assert shelves.jobs.lines(job.id)[-1].text == "The source is another now."


def until_told(_: Shelves, job: Job, work: Work) -> dict[str, object]:
    """A job that goes on until it is to break off."""
    while not work.cancelled():
        time.sleep(0.02)
    raise MergeCancelled


def test_a_runner_that_stops_hands_its_job_back_where_others_may_take_it(shelves: Shelves) -> None:
    runner = JobRunner(shelves, {"step": until_told})
    job, _ = shelves.jobs.enqueue("step", {})
    taken = shelves.jobs.claim(job.id)
    assert taken is not None
    threading.Timer(0.2, runner.stop.set).start()
    runner.run_one(taken)
    left = shelves.jobs.get(job.id)
    assert (left.state, left.stalled) == ("queued" if shelves.jobs.lease_s else "running", 0)


def test_a_runner_gives_up_a_job_that_another_took(shelves: Shelves) -> None:
    def overtaken(shelves: Shelves, job: Job, work: Work) -> dict[str, object]:
        shelves.jobs.interrupt(job.id, job.attempts, {"detail": "It seemed dead."})
        assert shelves.jobs.claim(job.id, "another") is not None
        return until_told(shelves, job, work)

    job = run(shelves, overtaken)
    assert (job.state, job.attempts, job.worker) == ("running", 2, "another")


@pytest.mark.parametrize("shelves", ["postgresql"], indirect=True)
def test_a_database_that_is_away_for_longer_than_the_lease(shelves: Shelves, postgres: Server) -> None:
    name = make_url(shelves.settings.database).database

    def cut_off(shelves: Shelves, job: Job, work: Work) -> dict[str, object]:
        work.progress(1, 2)
        if job.attempts > 1:
            return {"ref": "a/b@1"}
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            return until_told(shelves, job, work)
        finally:
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    runner = JobRunner(shelves, {"step": cut_off}, worker="here")
    job, _ = shelves.jobs.enqueue("step", {})
    taken = shelves.jobs.claim(job.id)
    assert taken is not None
    runner.run_one(taken)
    assert shelves.jobs.get(job.id).state == "running", "nothing was reported"
    while not shelves.jobs.requeue_interrupted():
        time.sleep(0.1)
    again = shelves.jobs.claim(job.id)
    assert again is not None
    runner.run_one(again)
    ended = shelves.jobs.get(job.id)
    assert (ended.state, ended.attempts, ended.stalled) == ("succeeded", 2, 1)
