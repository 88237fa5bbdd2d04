"""Real workers on a real PostgreSQL: killed, stopped, cut off and limited; every job has one outcome."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from tests.e2e.workers import WIDE, Workers, children_of, got_on
from tests.postgres import Server


@pytest.fixture
def workers(postgres: Server, tmp_path: Path) -> Iterator[Workers]:
    """A fresh database and folder; no worker yet."""
    url = postgres.create_database()
    opened = Workers(url, tmp_path)
    try:
        yield opened
    finally:
        opened.close()
        postgres.drop_database(url)


def test_killed_workers_lose_no_job(workers: Workers) -> None:
    workers.start("--queues", "merges")
    workers.start("--queues", "merges")
    jobs = [workers.merge(f"m{seed}", seed=seed) for seed in range(3)]
    for victim in jobs[:2]:
        running = workers.until(victim, got_on(0))
        if not running.finished:
            workers.process_of(running).kill()  # -9; the process that ran the job goes with it
            workers.start("--queues", "merges")
    for seed, job in enumerate(jobs):
        ended = workers.ended(job)
        assert ended.state == "succeeded", (ended, workers.logs())
        assert ended.result == {"ref": f"w/m{seed}@1", "digest": ended.result and ended.result["digest"]}
        assert workers.versions(f"m{seed}") == 1
    again = [workers.job(job) for job in jobs if workers.job(job).attempts > 1]
    assert again, "no kill hit a running job"
    assert any("was not heard of for 3 s" in cause["detail"] for job in again for cause in job.causes)


def test_a_worker_that_was_stopped_finds_its_job_taken_over(workers: Workers) -> None:
    first = workers.start("--queues", "merges")
    job = workers.merge("zombie")
    workers.until(job, got_on(0))
    workers.signal_all(first, signal.SIGSTOP)  # as a machine that hangs, or is cut off
    workers.start("--queues", "merges")
    taken = workers.until(job, got_on(1))
    assert taken.attempts == 2
    workers.signal_all(first, signal.SIGCONT)
    ended = workers.ended(job)
    assert (ended.state, ended.attempts) == ("succeeded", 2), workers.logs()
    assert workers.versions("zombie") == 1
    spoke = {(line.attempt, line.text.split()[0]) for line in workers.shelves.jobs.lines(job.id)}
    assert (1, "Done.") not in spoke
    time.sleep(1)
    assert workers.job(job) == ended, "the first attempt reported after the second"


def test_what_happens_to_one_job_on_one_worker(workers: Workers, postgres: Server) -> None:
    """One worker goes through it all: a dead process, a database that goes away, a cancel, and its own end."""
    ordinary = workers.merge("ordinary")
    urgent = workers.merge("urgent", priority=1, seed=1)
    worker = workers.start("--queues", "merges,verifications")
    workers.until(urgent, got_on(0))
    assert workers.job(ordinary).attempts == 0
    (child,) = children_of(worker.pid)
    os.kill(child, signal.SIGKILL)
    again = workers.until(urgent, got_on(1))
    assert "killed by signal 9" in again.causes[0]["detail"]

    # The database ends every connection: the job goes on, or is tried again; that is no fault of its own.
    name = make_url(workers.environment["SPOLIA_DATABASE_URL"]).database
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    ended = workers.ended(urgent)
    assert ended.state == "succeeded", workers.logs()
    assert ended.attempts <= again.attempts + 1

    assert workers.ended(ordinary).state == "succeeded"  # while the urgent one waits to be tried again, or after it
    stopped = workers.merge("stopped", seed=2)
    workers.until(stopped, got_on(0))
    workers.shelves.jobs.request_cancel(stopped.id)
    assert workers.ended(stopped).state == "cancelled"

    last = workers.merge("last", seed=3)
    workers.until(last, got_on(0))
    worker.terminate()
    assert worker.wait(30) == 0
    handed_back = workers.job(last)
    assert (handed_back.state, handed_back.stalled, handed_back.causes) == ("queued", 0, ())
    with workers.shelves.database.session() as session:
        assert session.scalar(text("SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'")) == 1
        session.execute(text("DELETE FROM procrastinate_jobs"))  # forgotten by procrastinate
    workers.start("--queues", "merges")
    assert workers.ended(last).state == "succeeded", workers.logs()
    report = workers.shelves.registry.report(workers.shelves.registry.resolve("w/last@1"))
    assert report is not None
    assert 0 < report["modules_resumed"] < len(WIDE), "the same machine goes on where the first worker was"


def test_limits_of_time_and_memory(workers: Workers) -> None:
    workers.start(SPOLIA_MERGE_MEMORY_BYTES="1000000", SPOLIA_VERIFICATION_TIMEOUT_S="0.001")
    jobs = workers.shelves.jobs
    heavy = workers.merge("heavy")
    version = workers.shelves.registry.resolve("w/s0")
    slow, _ = jobs.enqueue("verify", {"ref": version.ref, "digest": version.digest})
    found = {job.kind: workers.ended(job).error or {} for job in (heavy, slow)}
    assert found["merge"]["type"] == "urn:spolia:problem:job-memory"
    assert "of the 1000000 that its kind may take" in found["merge"]["detail"]
    assert found["verify"]["type"] == "urn:spolia:problem:job-timeout"
    assert [workers.job(job).attempts for job in (heavy, slow)] == [1, 1]
