"""What jobs say while they run: bounded lines, kept beside the jobs table, readable while the job goes on."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.job_models import JobLogRow, JobRow
from store.job_records import LogLine, line_record
from store.models import now

MAX_LINE = 2000
"""Characters of a line that are kept."""


def append_lines(session: Session, row: JobRow, lines: Sequence[tuple[str, str]], keep: int) -> None:
    """Add (level, text) lines to a job whose row is locked; of all its lines the last ``keep`` stay."""
    time = now()
    for level, said in lines:
        row.log_lines += 1
        # NUL is no text for PostgreSQL.
        clean = said.replace("\0", "\\0")
        cut = clean if len(clean) <= MAX_LINE else clean[: MAX_LINE - 1] + "…"
        session.add(
            JobLogRow(job_id=row.id, number=row.log_lines, at=time, attempt=row.attempts, level=level, text=cut)
        )
    session.flush()
    if row.log_lines > keep:
        session.execute(delete(JobLogRow).where(JobLogRow.job_id == row.id, JobLogRow.number <= row.log_lines - keep))


def read_lines(session: Session, job_id: str, after: int, limit: int) -> list[LogLine]:
    """At most ``limit`` lines with numbers above ``after``, oldest first."""
    found = session.scalars(
        select(JobLogRow)
        .where(JobLogRow.job_id == job_id, JobLogRow.number > after)
        .order_by(JobLogRow.number)
        .limit(limit)
    )
    return [line_record(row) for row in found]
