"""Jobs: states, races for the next one, interruptions, cancelling."""

import threading

import pytest

from store.errors import JobNotRunning, UnknownJob
from store.jobs import Job, JobTable


def test_a_job_runs_and_ends(jobs: JobTable) -> None:
    job, created = jobs.enqueue("merge", {"recipe": {"weights": [0.5]}})
    assert created
    assert (job.state, job.attempts, job.finished) == ("queued", 0, False)
    claimed = jobs.claim_next()
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.attempts) == (job.id, "running", 1)
    assert jobs.claim_next() is None
    jobs.progress(job.id, 3, 7)
    assert (jobs.get(job.id).done, jobs.get(job.id).total) == (3, 7)
    ended = jobs.succeed(job.id, {"ref": "team/m@1"})
    assert ended == jobs.get(job.id)
    assert (ended.state, ended.result, ended.finished, ended.cached) == ("succeeded", {"ref": "team/m@1"}, True, False)
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.created_at <= ended.started_at <= ended.finished_at


def test_jobs_are_taken_in_the_order_they_came(jobs: JobTable) -> None:
    queued = [jobs.enqueue("merge", {"n": n})[0].id for n in range(5)]
    claimed = [jobs.claim_next() for _ in range(5)]
    assert [job.id for job in claimed if job] == queued


def test_the_same_work_is_queued_once_while_it_is_under_way(jobs: JobTable) -> None:
    first, _ = jobs.enqueue("merge", {}, "key")
    assert jobs.enqueue("merge", {}, "key") == (first, False)
    jobs.claim_next()
    assert jobs.enqueue("merge", {}, "key")[1] is False
    assert jobs.enqueue("merge", {}, "other")[1] is True
    jobs.fail(first.id, {"title": "no"})
    again, created = jobs.enqueue("merge", {}, "key")
    assert created
    assert again.id != first.id


def test_a_key_may_be_of_any_length(jobs: JobTable) -> None:
    first, _ = jobs.enqueue("merge", {}, "k" * 1000)
    assert jobs.enqueue("merge", {}, "k" * 1000) == (first, False)
    assert jobs.enqueue("merge", {}, "k" * 1001)[1]


def test_a_result_that_existed_is_a_job_that_succeeded(jobs: JobTable) -> None:
    job = jobs.record_cached("merge", {"a": 1}, {"ref": "team/m@1"}, "key")
    assert (job.state, job.cached, job.result, job.attempts) == ("succeeded", True, {"ref": "team/m@1"}, 0)
    assert job == jobs.get(job.id)
    assert jobs.claim_next() is None
    assert jobs.enqueue("merge", {}, "key")[1] is True


def test_every_job_is_claimed_exactly_once(jobs: JobTable) -> None:
    queued = {jobs.enqueue("merge", {})[0].id for _ in range(24)}
    claimed: list[str] = []

    def work() -> None:
        while (job := jobs.claim_next()) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 24
    assert set(claimed) == queued


def test_one_of_many_enqueues_of_the_same_work_wins(jobs: JobTable) -> None:
    results: list[tuple[Job, bool]] = []
    threads = [threading.Thread(target=lambda: results.append(jobs.enqueue("merge", {}, "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in results}) == 1
    assert sum(created for _, created in results) == 1


def test_interrupted_jobs_go_back_to_the_queue(jobs: JobTable) -> None:
    waiting = [jobs.enqueue("merge", {})[0].id for _ in range(3)]
    jobs.claim_next()
    jobs.progress(waiting[0], 2, 9)
    (back,) = jobs.requeue_interrupted()
    assert (back.id, back.state, back.done) == (waiting[0], "queued", 2)
    again = jobs.claim_next()
    assert again is not None
    assert (again.id, again.attempts) == (waiting[0], 2)


def test_a_job_that_kills_its_worker_again_and_again_fails(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    for _ in range(3):
        jobs.claim_next()
        jobs.progress(job.id, 1, 9)
        assert jobs.requeue_interrupted(max_interruptions=4)[0].state == "queued"
    jobs.claim_next()
    jobs.progress(job.id, 2, 9)
    assert jobs.requeue_interrupted(max_interruptions=4)[0].stalled == 1, "it got further"
    for _ in range(3):
        jobs.claim_next()
        (last,) = jobs.requeue_interrupted(4, lambda error: {"detail": str(error), "done": error.done})
    assert last.state == "failed"
    assert last.error is not None
    assert "died 4 times at the same step" in last.error["detail"]
    assert last.error["done"] == 2
    assert jobs.claim_next() is None


def test_steps_done_once_more_are_no_progress(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    for done in (5, 1, 5):
        jobs.claim_next()
        jobs.progress(job.id, done, 9)
        jobs.requeue_interrupted()
    assert jobs.get(job.id).stalled == 3


def test_cancelling(jobs: JobTable) -> None:
    queued, _ = jobs.enqueue("merge", {})
    assert jobs.request_cancel(queued.id).state == "cancelled"
    assert jobs.claim_next() is None
    running, _ = jobs.enqueue("merge", {})
    jobs.claim_next()
    assert not jobs.cancel_requested(running.id)
    assert jobs.request_cancel(running.id).state == "running"
    assert jobs.cancel_requested(running.id)
    assert jobs.cancelled(running.id).state == "cancelled"
    done, _ = jobs.enqueue("merge", {})
    jobs.claim_next()
    finished = jobs.succeed(done.id, {})
    assert jobs.request_cancel(done.id) == finished
    assert [job.state for job in jobs.list().items] == ["succeeded", "cancelled", "cancelled"]


def test_a_job_to_be_cancelled_does_not_run_again_after_a_crash(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    jobs.claim_next()
    jobs.request_cancel(job.id)
    assert jobs.requeue_interrupted()[0].state == "cancelled"


def test_a_finished_job_takes_no_reports(jobs: JobTable) -> None:
    job, _ = jobs.enqueue("merge", {})
    with pytest.raises(JobNotRunning, match="is queued"):
        jobs.succeed(job.id, {})
    jobs.claim_next()
    ended = jobs.fail(job.id, {"title": "no"})
    with pytest.raises(JobNotRunning, match="is failed"):
        jobs.progress(job.id, 1, 1)
    with pytest.raises(JobNotRunning):
        jobs.cancelled(job.id)
    assert jobs.get(job.id) == ended


def test_an_unknown_job_is_named(jobs: JobTable) -> None:
    for act in (jobs.get, jobs.request_cancel, jobs.cancelled, jobs.cancel_requested):
        with pytest.raises(UnknownJob, match="nobody"):
            act("nobody")


def test_lists_are_newest_first_and_stable_while_jobs_come(jobs: JobTable) -> None:
    ids = [jobs.enqueue("merge", {})[0].id for _ in range(5)]
    first = jobs.list(limit=2)
    jobs.enqueue("merge", {})
    second = jobs.list(limit=2, cursor=first.next_cursor)
    third = jobs.list(limit=2, cursor=second.next_cursor)
    assert [job.id for page in (first, second, third) for job in page.items] == ids[::-1]
    assert third.next_cursor is None
    jobs.claim_next()
    assert [job.id for job in jobs.list(state="running").items] == ids[:1]
