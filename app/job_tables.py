"""The jobs table as these settings want it: with leases on PostgreSQL, with hints where workers run elsewhere."""

from app.queues import QUEUES
from app.settings import Settings
from store.database import Database
from store.job_hints import JobHints
from store.jobs import JobTable


def open_jobs(settings: Settings, database: Database) -> JobTable:
    """The jobs table, for API processes and workers alike; loads no model library."""
    return JobTable(
        database,
        hints=JobHints(QUEUES) if settings.jobs == "distributed" else None,
        lease_s=settings.job_lease_s if database.is_postgresql else None,
        kept_lines=settings.max_job_log_lines,
    )
