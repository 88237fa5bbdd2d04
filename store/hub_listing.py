"""The list of repositories by time, filtered: what the Hub's `list_models` asks for.

Ids begin with the time at which they were made, so the primary keys are the order in which this lists: a page without
filters, or with filters that many pass, is read off the end of one index.
"""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import Select, or_, select

from store.actor import seen
from store.cursors import decode_cursor, encode_cursor
from store.database import Database
from store.models import AdapterRow, ListingRow, TagRow, VersionRow
from store.records import Page, Version
from store.rows import read_versions
from store.shelving import word_grams

Sort = Literal["created_at", "last_modified"]
_EVERYWHERE = frozenset({"peft", "safetensors", "text-generation"})


class HubListing:
    """Pages of repositories, each as its latest version."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def list(
        self,
        *,
        search: str | None = None,
        author: str | None = None,
        filters: Sequence[str] = (),
        sort: Sort = "last_modified",
        ascending: bool = False,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Version]:
        """One page of the adapters that pass every filter, by the time of their latest version or their first.

        ``search``: each of its words occurs in ``namespace/name``, in any case; ``author`` is the namespace; a filter
        is a tag, a family, ``license:…``, ``base_model:…`` or ``base_model:adapter:…``. Raises BadCursor.
        """
        by = AdapterRow.id if sort == "created_at" else VersionRow.id
        is_latest = (VersionRow.adapter_id == AdapterRow.id) & (VersionRow.number == AdapterRow.latest_number)
        statement = select(VersionRow.id, by.label("place")).join(AdapterRow, is_latest)
        statement = statement.where(seen(AdapterRow.namespace))
        if author is not None:
            statement = statement.where(AdapterRow.namespace == author)
        for word in (search or "").split():
            statement = self._named(statement, word)
        for name in filters:
            statement = _tagged(statement, name)
        if cursor is not None:
            (place,) = decode_cursor(f"hub-{sort}", cursor, 1)
            statement = statement.where(by > place if ascending else by < place)
        statement = statement.order_by(by.asc() if ascending else by.desc()).limit(limit + 1)
        with self.database.reading() as session:
            found = session.execute(statement).all()
            page = found[:limit]
            of_page = select(VersionRow).where(VersionRow.id.in_([row.id for row in page]))
            versions = {version.id: version for version in read_versions(session, of_page)}
        following = encode_cursor(f"hub-{sort}", (page[-1].place,)) if len(found) > limit else None
        return Page([versions[row.id] for row in page], following)

    def _named(self, statement: Select[str, str], word: str) -> Select[str, str]:
        """Only adapters whose reference holds the word."""
        reference = AdapterRow.namespace + "/" + AdapterRow.name
        statement = statement.where(reference.icontains(word, autoescape=True))
        if not self.database.is_postgresql:
            return statement
        # The inverted lists of the search, which look at more text: they narrow, the line above decides.
        mentioned = select(ListingRow.adapter_id).where(ListingRow.grams.contains(word_grams(word.casefold())))
        return statement.where(AdapterRow.id.in_(mentioned))


def _tagged(statement: Select[str, str], name: str) -> Select[str, str]:
    """Only adapters of which the Hub would say this."""
    if name in _EVERYWHERE:
        return statement
    kind, colon, value = name.partition(":")
    if colon and kind == "base_model":
        return statement.where(VersionRow.base_model == value.removeprefix("adapter:"))
    if colon and kind == "license":
        return statement.where(VersionRow.license == value)
    tagged = select(TagRow.tag).where(TagRow.adapter_id == AdapterRow.id, TagRow.tag == name)
    return statement.where(or_(VersionRow.family == name, tagged.exists()))
