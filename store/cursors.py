"""Page cursors: the sort key of the last item of a page, opaque to whoever passes it on.

Because a cursor names a place in the order and not an offset, items added or removed meanwhile shift nothing.
"""

import base64
import binascii
import json
from collections.abc import Sequence

from store.errors import BadCursor


def encode_cursor(listing: str, key: Sequence[str]) -> str:
    """URL-safe text for this place in this listing."""
    return base64.urlsafe_b64encode(json.dumps([listing, *key]).encode()).decode().rstrip("=")


def decode_cursor(listing: str, cursor: str, parts: int) -> list[str]:
    """The sort key again, as ``parts`` texts. Raises BadCursor.

    >>> decode_cursor("adapters", encode_cursor("adapters", ["team", "spam"]), 2)
    ['team', 'spam']
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise BadCursor(cursor) from None
    if not isinstance(key, list) or len(key) != parts + 1 or not all(isinstance(part, str) for part in key):
        raise BadCursor(cursor)
    if key[0] != listing:
        raise BadCursor(cursor)
    return key[1:]
