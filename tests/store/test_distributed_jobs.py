"""Jobs on PostgreSQL with hints by procrastinate: one transaction, leases, fencing, what is lost and found again."""

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from store.database import Database
from store.errors import JobNotRunning, JobTakenOver
from store.job_hints import JobHints
from store.jobs import JobTable
from tests.postgres import Server

QUEUES = {"merge": "merges", "verify": "verifications"}


@pytest.fixture
def shared(postgres: Server) -> Iterator[Database]:
    """An empty database on PostgreSQL."""
    url = postgres.create_database()
    database = Database(url)
    database.migrate()
    yield database
    database.close()
    postgres.drop_database(url)


@pytest.fixture
def jobs(shared: Database) -> JobTable:
    """The jobs table as two machines would share it; a worker counts as dead after an hour of silence."""
    return JobTable(shared, hints=JobHints(QUEUES), lease_s=3600.0)


def hints(database: Database) -> list[tuple[str, str, int, str]]:
    """(queue, job id, priority, status) of all of procrastinate's jobs."""
    with database.reading() as session:
        rows = session.execute(
            text("SELECT queue_name, args ->> 'job_id', priority, status::text FROM procrastinate_jobs ORDER BY id")
        )
        return [(queue, job_id, priority, status) for queue, job_id, priority, status in rows]


def lapse(database: Database) -> None:
    """Let all leases run out."""
    with database.session() as session:
        past = "UPDATE jobs SET leased_until = clock_timestamp() - interval '1 s' WHERE state = 'running'"
        session.execute(text(past))


def test_a_job_and_its_hint_are_queued_together(jobs: JobTable, shared: Database) -> None:
    merge, _ = jobs.enqueue("merge", {}, "key", priority=3)
    jobs.enqueue("merge", {}, "key")
    jobs.enqueue("promotion", {})
    assert hints(shared) == [("merges", merge.id, 3, "todo")]
    assert jobs.request_cancel(merge.id).state == "cancelled"
    assert hints(shared) == []


def test_a_transaction_that_fails_queues_neither(jobs: JobTable, shared: Database) -> None:
    class Broken(JobHints):
        def put(self, session: object, row: object) -> None:
            super().put(session, row)  # type: ignore[arg-type]
            raise KeyError

    with pytest.raises(KeyError):
        JobTable(shared, hints=Broken(QUEUES), lease_s=1.0).enqueue("merge", {})
    assert hints(shared) == []
    assert jobs.list().items == []


def test_a_lost_hint_is_put_again_and_only_once(jobs: JobTable, shared: Database) -> None:
    queued = [jobs.enqueue("merge", {})[0].id for _ in range(3)]
    jobs.claim(queued[2])
    with shared.session() as session:
        session.execute(text("DELETE FROM procrastinate_jobs"))
    assert jobs.mend_hints() == 2
    assert jobs.mend_hints() == 0
    assert {(job_id, status) for _, job_id, _, status in hints(shared)} == {(job_id, "todo") for job_id in queued[:2]}


def test_a_hint_counts_while_the_worker_that_took_it_lives(jobs: JobTable, shared: Database) -> None:
    jobs.enqueue("merge", {})
    with shared.session() as session:
        session.execute(text("INSERT INTO procrastinate_workers DEFAULT VALUES"))
        taken = (
            "UPDATE procrastinate_jobs SET status = 'doing', worker_id = (SELECT max(id) FROM procrastinate_workers)"
        )
        session.execute(text(taken))
    assert jobs.mend_hints() == 0
    with shared.session() as session:
        session.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '2 h'"))
    assert jobs.mend_hints() == 1
    assert [status for *_, status in hints(shared)] == ["doing", "todo"]


def test_only_one_worker_claims_a_job(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    claimed = []
    threads = [threading.Thread(target=lambda: claimed.append(jobs.claim(job.id, "w"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (taken,) = [one for one in claimed if one is not None]
    assert (taken.state, taken.attempts, taken.worker) == ("running", 1, "w")


def test_a_live_neighbours_job_is_left_alone(jobs: JobTable, shared: Database) -> None:
    job, _ = jobs.enqueue("merge", {})
    jobs.claim(job.id, "neighbour")
    assert jobs.requeue_interrupted() == ()
    lapse(shared)
    jobs.beat(job.id, 1)
    assert jobs.requeue_interrupted() == (), "a sign of life renews the lease"
    lapse(shared)
    (back,) = jobs.requeue_interrupted()
    assert (back.state, back.stalled, len(back.causes)) == ("queued", 1, 1)
    assert back.worker is None, "nobody runs it now"
    assert "worker neighbour of attempt 1 was not heard of" in back.causes[0]["detail"]
    assert [status for *_, status in hints(shared)] == ["todo"]


ZOMBIE: dict[str, Callable[[JobTable, str], object]] = {
    "progress": lambda jobs, job_id: jobs.progress(job_id, 9, 9, attempt=1),
    "say": lambda jobs, job_id: jobs.say(job_id, [("info", "I live")], attempt=1),
    "beat": lambda jobs, job_id: jobs.beat(job_id, 1),
    "succeed": lambda jobs, job_id: jobs.succeed(job_id, {"ref": "zombie@1"}, attempt=1),
    "fail": lambda jobs, job_id: jobs.fail(job_id, {"title": "no"}, attempt=1),
    "cancelled": lambda jobs, job_id: jobs.cancelled(job_id, attempt=1),
    "retry": lambda jobs, job_id: jobs.retry(job_id, 1, {"detail": "no"}, 0.0),
    "release": lambda jobs, job_id: jobs.release(job_id, 1),
    "interrupt": lambda jobs, job_id: jobs.interrupt(job_id, 1, {"detail": "no"}),
}


@pytest.mark.parametrize("report", ZOMBIE)
def test_a_zombie_cannot_speak_for_a_newer_attempt(report: str, jobs: JobTable, shared: Database) -> None:
    job, _ = jobs.enqueue("merge", {})
    jobs.claim(job.id, "zombie")
    lapse(shared)
    jobs.requeue_interrupted()
    with pytest.raises(JobNotRunning):
        ZOMBIE[report](jobs, job.id)
    again = jobs.claim(job.id, "living")
    with pytest.raises(JobTakenOver, match="attempt 2 came after it"):
        ZOMBIE[report](jobs, job.id)
    assert jobs.get(job.id) == again
    ended = jobs.succeed(job.id, {"ref": "living@1"}, attempt=2)
    with pytest.raises(JobTakenOver):
        ZOMBIE[report](jobs, job.id)
    assert jobs.get(job.id) == ended


def test_what_passes_is_tried_again_later_with_its_cause(jobs: JobTable, shared: Database) -> None:
    job, _ = jobs.enqueue("merge", {}, priority=1)
    jobs.claim(job.id)
    back = jobs.retry(job.id, 1, {"title": "Storage busy"}, 600.0)
    assert (back.state, back.failures, back.stalled) == ("queued", 1, 0)
    assert (back.causes[0]["attempt"], back.causes[0]["title"]) == (1, "Storage busy")
    assert jobs.claim_next() is None, "not before its time"
    with shared.reading() as session:
        wait = session.scalar(text("SELECT extract(epoch FROM scheduled_at - now()) FROM procrastinate_jobs"))
    assert 500 < float(str(wait)) <= 600
    assert jobs.mend_hints() == 0


def test_a_released_job_is_no_interruption(jobs: JobTable, shared: Database) -> None:
    job, _ = jobs.enqueue("merge", {})
    jobs.claim(job.id, "w")
    released = jobs.release(job.id, 1)
    assert (released.stalled, released.worker) == (0, None)
    assert [status for *_, status in hints(shared)] == ["todo"]


def test_poison_ends(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    for attempt in (1, 2, 3):
        jobs.claim(job.id)
        ended = jobs.interrupt(job.id, attempt, {"detail": "It was killed."}, max_interruptions=3)
    assert ended.state == "failed"
    assert ended.error is not None
    assert "died 3 times" in ended.error["detail"]
    assert [cause["attempt"] for cause in ended.causes] == [1, 2, 3]
    assert jobs.mend_hints() == 0
