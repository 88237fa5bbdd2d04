"""The database and its jobs table as these settings want them: with leases on PostgreSQL, with hints where workers run
elsewhere. Loads no model library."""

import logging

from app.queues import QUEUES
from app.settings import Settings
from store.database import Database
from store.jobs import JobTable


def open_database(settings: Settings) -> Database:
    """The database. Raises UnsupportedDatabase."""
    return Database(settings.database, settings.database_timeout_s, settings.database_connections)


def open_jobs(settings: Settings, database: Database) -> JobTable:
    """The jobs table, for API processes and workers alike."""
    hints = None
    if settings.jobs == "distributed":
        # procrastinate takes a quarter of a second to load, which the embedded engine does not need.
        from store.job_hints import JobHints

        logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # what matters of it is said here too
        hints = JobHints(QUEUES)
    return JobTable(
        database,
        hints=hints,
        lease_s=settings.job_lease_s if database.is_postgresql else None,
        kept_lines=settings.max_job_log_lines,
    )
