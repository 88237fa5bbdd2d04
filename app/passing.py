"""Which errors may be gone at the next try."""

from app.errors import row_of
from store.errors import SchemaNewer, StoreError


def passes(error: BaseException) -> bool:
    """Whether storage was busy or out of reach: what the table of errors calls 503, never the input's fault. Tables of
    a newer release are no such thing: this process will not learn them by waiting."""
    row = row_of(error)
    passing = isinstance(error, StoreError) and not isinstance(error, SchemaNewer)
    return passing and row is not None and row[0] == 503
