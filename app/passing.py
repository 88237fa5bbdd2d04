"""Which errors may be gone at the next try."""

from app.errors import row_of
from store.errors import SchemaNewer, SchemaOlder, StoreError


def passes(error: BaseException) -> bool:
    """Whether storage was busy or out of reach: what the table of errors calls 503, never the input's fault. Tables of
    another release are no such thing: this process will not learn them by waiting."""
    row = row_of(error)
    another_release = isinstance(error, SchemaNewer | SchemaOlder)
    return isinstance(error, StoreError) and not another_release and row is not None and row[0] == 503
