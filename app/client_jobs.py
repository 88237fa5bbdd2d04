"""The client's verbs for jobs: look at them, follow them, read their log, cancel them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.client_http import Json, Progress, SpoliaError, Transport, problem_error
from app.client_inputs import part

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
LOST = frozenset({"unreachable", "connection-broken"})
RECONNECT_WITHIN_S = 60.0
RECONNECT_EVERY_S = 0.5


class StoppedFollowing(KeyboardInterrupt):
    """Ctrl-C while a job was followed: the job goes on."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id} goes on")


@contextmanager
def following(job_id: str) -> Iterator[None]:
    """Follow a job in this block: Ctrl-C says which one goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedFollowing(job_id) from None


class JobVerbs:
    """What a client can do with jobs."""

    _http: Transport

    def job(self, job_id: str) -> Json:
        """One job."""
        return self._http.json("GET", f"/v1/jobs/{part(job_id)}")

    def jobs(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Jobs, newest first, page after page; `limit` is the size of a page."""
        return self._http.pages("/v1/jobs", {"state": state, "limit": limit})

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop; it does so between two modules."""
        return self._http.json("POST", f"/v1/jobs/{part(job_id)}/cancel")

    def job_log(self, job_id: str, *, after: int = 0) -> Iterator[Json]:
        """The lines of a job's log so far, oldest first: number, at, attempt, level, text."""
        while True:
            page = self._http.json("GET", f"/v1/jobs/{part(job_id)}/log", params={"after": after})
            if not page["items"]:
                return
            yield from page["items"]
            after = page["next_after"]

    def events(self, job_id: str, *, log: bool = False) -> Iterator[tuple[str, Json]]:
        """A job's events as they happen: ("progress" or "state", the job). Ends after a final state.

        With `log` also ("log", the job, whose member `line` is a new line of its log).
        """
        for event, data in self._http.events("GET", f"/v1/jobs/{part(job_id)}/events"):
            if log or event != "log":
                yield event, json.loads(data)

    def wait(
        self, job_id: str, *, on_progress: Progress | None = None, on_line: Callable[[Json], None] | None = None
    ) -> Json:
        """Follow a job to its end, also through a restart of the service. `on_line` is given its log's lines.

        Raises SpoliaError when the job fails or is cancelled, or the service stays away for longer than a minute;
        StoppedFollowing, a KeyboardInterrupt, at Ctrl-C, which does not stop the job.
        """
        with following(job_id):
            job = self._followed(job_id, on_progress, on_line)
        if job["state"] == "cancelled":
            raise problem_error("job-cancelled", f"Job {job_id} was cancelled; nothing was published.")
        if job["state"] == "failed":
            raise SpoliaError(job["error"] or {"detail": f"Job {job_id} failed."})
        return job

    def _followed(self, job_id: str, on_progress: Progress | None, on_line: Callable[[Json], None] | None) -> Json:
        job: Json = {"state": "unknown"}
        lost_at: float | None = None
        told = 0
        while job["state"] not in FINAL_STATES:
            try:
                for event, job in self.events(job_id, log=on_line is not None):
                    lost_at = None
                    if event == "log":
                        if on_line and job["line"]["number"] > told:
                            told = job["line"]["number"]
                            on_line(job["line"])
                    elif on_progress and job["progress"]["total"]:
                        on_progress(job["progress"]["done"], job["progress"]["total"])
            except SpoliaError as error:
                lost_at = lost_at or time.monotonic()
                if error.slug not in LOST or time.monotonic() - lost_at > RECONNECT_WITHIN_S:
                    raise
                time.sleep(RECONNECT_EVERY_S)
        return job
