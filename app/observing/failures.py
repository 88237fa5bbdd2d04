"""Which failures are the storage's: counted by kind, whether a request or a job met them."""

from sqlalchemy.exc import SQLAlchemyError

from app.errors import describe, is_disk_full
from app.observing import metrics


def count_storage_error(error: BaseException) -> None:
    """Count the error, if it is one of database, blobs or disk."""
    slug = describe(error)[1]
    if slug in metrics.STORAGE_ERRORS:
        metrics.storage_errors.labels(slug).inc()
    elif is_disk_full(error):
        metrics.storage_errors.labels("storage-full").inc()
    elif isinstance(error, SQLAlchemyError):
        metrics.storage_errors.labels("database").inc()
    elif isinstance(error, OSError):
        metrics.storage_errors.labels("file-system").inc()
