"""Jobs: look at them, follow them as server-sent events, cancel them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.answer_docs import FOLLOWED
from app.api.access import HouseDep, needs
from app.house import House
from app.presenting import job_json, page_json
from app.schemas import Body
from store.jobs import Job, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_LOOK_EVERY_S = 0.2
_COMMENT_EVERY_S = 15.0  # proxies cut connections that stay silent


class JobQuery(Body):
    """Filter and place of the list of jobs."""

    state: JobState | None = None
    limit: int = Field(50, ge=1)
    cursor: str | None = Field(None, max_length=1024)


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


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=FOLLOWED, dependencies=[needs(None)])
async def job_events(house: HouseDep, job_id: str) -> StreamingResponse:
    """The job as it changes, as server-sent events, until it has ended."""
    first = await to_thread.run_sync(house.jobs.get, job_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(house, first), media_type="text/event-stream", headers=headers)


async def _events(house: House, job: Job) -> AsyncIterator[str]:
    yield _event("state", job)
    spoke_at = time.monotonic()
    while not job.finished:
        await asyncio.sleep(_LOOK_EVERY_S)
        seen, job = job, await to_thread.run_sync(house.jobs.get, job.id)
        if job.state != seen.state or (job.done, job.total) != (seen.done, seen.total):
            yield _event("state" if job.state != seen.state else "progress", job)
            spoke_at = time.monotonic()
        elif time.monotonic() - spoke_at > _COMMENT_EVERY_S:
            yield ": still here\n\n"
            spoke_at = time.monotonic()


def _event(kind: str, job: Job) -> str:
    return f"event: {kind}\ndata: {json.dumps(job_json(job))}\n\n"
