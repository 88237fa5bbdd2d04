"""What can end a job from outside: it took too long, it took too much memory, its process died."""

from app.problems import AppError


class JobError(AppError):
    """Root of what ends an attempt at a job from outside."""


class JobTimeout(JobError):
    """An attempt at a job took longer than its kind may."""

    def __init__(self, job_id: str, kind: str, timeout_s: float) -> None:
        self.job_id = job_id
        self.timeout_s = timeout_s
        super().__init__(f"Job {job_id} ({kind}) was not finished within the {timeout_s:g} s that its kind may take.")


class JobMemory(JobError):
    """A job's process took more memory than its kind may."""

    def __init__(self, job_id: str, kind: str, limit_bytes: int, used_bytes: int) -> None:
        self.job_id = job_id
        self.limit_bytes = limit_bytes
        self.used_bytes = used_bytes
        super().__init__(
            f"Job {job_id} ({kind}) took {used_bytes} bytes of memory, of the {limit_bytes} that its kind may take."
        )


class ProcessDied(JobError):
    """The process of one attempt ended without a word."""

    def __init__(self, job_id: str, attempt: int, code: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.code = code
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        super().__init__(f"The process of attempt {attempt} of job {job_id} {how}.")
