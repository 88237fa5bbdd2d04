"""Which errors may be gone at the next try."""

from app.errors import row_of
from store.errors import StoreError


def passes(error: BaseException) -> bool:
    """Whether storage was busy or out of reach: what the table of errors calls 503, never the input's fault."""
    row = row_of(error)
    return isinstance(error, StoreError) and row is not None and row[0] == 503
