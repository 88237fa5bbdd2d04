"""Jobs: look at them, follow them as server-sent events, cancel them."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.answer_docs import FOLLOWED
from app.api.access import HouseDep, needs
from app.house import House
from app.presenting import job_json, line_json, page_json
from app.schemas import Body
from store.jobs import Job, JobState
from store.models import MAX_INTEGER

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_COMMENT_EVERY_S = 15.0  # proxies cut connections that stay silent


class JobQuery(Body):
    """Filter and place of the list of jobs."""

    state: JobState | None = None
    limit: int = Field(50, ge=1)
    cursor: str | None = Field(None, max_length=1024)


class LogQuery(Body):
    """Which lines of a log."""

    after: int = Field(0, ge=0, le=MAX_INTEGER, description="Number of the last line that is known already.")
    limit: int = Field(1000, ge=1, le=1000)


@router.get("", dependencies=[needs(None)])
def list_jobs(house: HouseDep, query: Annotated[JobQuery, Query()]) -> dict[str, Any]:
    """Jobs, newest first, a page at a time."""
    limit = min(query.limit, house.settings.max_page)
    page = house.jobs.list(limit=limit, cursor=query.cursor, state=query.state)
    return page_json([job_json(job) for job in page.items], page.next_cursor)


@router.get("/{job_id}", dependencies=[needs(None)])
def get_job(house: HouseDep, job_id: str) -> dict[str, Any]:
    """One job."""
    return job_json(house.jobs.get(job_id))


@router.post("/{job_id}/cancel", dependencies=[needs(None)])
def cancel_job(house: HouseDep, job_id: str) -> dict[str, Any]:
    """Ask for an end. A queued job ends at once, a running one between two modules, a finished one stays as it is."""
    job = house.jobs.request_cancel(job_id)
    house.job_engine.wake()
    return job_json(job)


@router.get("/{job_id}/log", dependencies=[needs(None)])
def job_log(house: HouseDep, job_id: str, query: Annotated[LogQuery, Query()]) -> dict[str, Any]:
    """What a job says it does, oldest line first; the last lines are kept. Go on with `after=next_after`."""
    lines = house.jobs.lines(job_id, query.after, query.limit)
    return {"items": [line_json(line) for line in lines], "next_after": lines[-1].number if lines else query.after}


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=FOLLOWED, dependencies=[needs(None)])
async def job_events(house: HouseDep, job_id: str) -> StreamingResponse:
    """The job as it changes, as server-sent events, until it has ended.

    Each event's data is the job: `state` when its state changed, `progress` when it got on, and `log` for each line of
    its log, which is then the member `line`.
    """
    await to_thread.run_sync(house.jobs.get, job_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(house, job_id), media_type="text/event-stream", headers=headers)


async def _events(house: House, job_id: str) -> AsyncIterator[str]:
    """Lines before the state that follows them, so that a final state is the last event."""
    seen: Job | None = None
    told = 0
    with house.job_watch.follow(job_id) as follower:
        while seen is None or not seen.finished:
            if seen is not None and not await follower.changed(_COMMENT_EVERY_S):
                yield ": still here\n\n"
                continue  # thousands may wait: who hears nothing reads nothing
            job = await to_thread.run_sync(house.jobs.get, job_id)
            while told < job.log_lines:
                lines = await to_thread.run_sync(house.jobs.lines, job_id, told)
                for line in lines:
                    yield _event("log", job, line=line_json(line))
                told = lines[-1].number if lines else job.log_lines
            if seen is None or job.state != seen.state:
                yield _event("state", job)
            elif (job.done, job.total) != (seen.done, seen.total):
                yield _event("progress", job)
            seen = job


def _event(kind: str, job: Job, **more: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({**job_json(job), **more})}\n\n"
