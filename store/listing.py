"""The list of adapters: filters, free text, pages in the order of namespace and name."""

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from store.actor import seen
from store.cursors import decode_cursor, encode_cursor
from store.models import MAX_INTEGER, AdapterRow, TagRow, VersionRow, VersionTargetRow
from store.records import AdapterEntry, Page
from store.rows import read_entries


def list_adapters(
    session: Session,
    *,
    base_model: str | None,
    rank: int | None,
    target: str | None,
    tag: str | None,
    q: str | None,
    limit: int,
    cursor: str | None,
) -> Page[AdapterEntry]:
    """One page of the adapters that are seen and whose latest version passes every filter given. Raises BadCursor."""
    is_latest = (VersionRow.adapter_id == AdapterRow.id) & (VersionRow.number == AdapterRow.latest_number)
    statement = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name).join(VersionRow, is_latest)
    statement = statement.where(seen(AdapterRow.namespace))
    if base_model is not None:
        statement = statement.where(VersionRow.base_model == base_model)
    if rank is not None:
        asked = min(rank, MAX_INTEGER)
        statement = statement.where(VersionRow.rank_min <= asked, VersionRow.rank_max >= asked)
    if target is not None:
        statement = statement.where(
            select(VersionTargetRow.suffix)
            .where(VersionTargetRow.version_id == VersionRow.id, VersionTargetRow.suffix == target)
            .exists()
        )
    if tag is not None:
        statement = statement.where(
            select(TagRow.tag).where(TagRow.adapter_id == AdapterRow.id, TagRow.tag == tag).exists()
        )
    for word in (q or "").split():
        statement = _mentioning(statement, word)
    if cursor is not None:
        namespace, name = decode_cursor("adapters", cursor, 2)
        statement = statement.where(tuple_(AdapterRow.namespace, AdapterRow.name) > tuple_(namespace, name))
    found = session.execute(statement.order_by(AdapterRow.namespace, AdapterRow.name).limit(limit + 1)).all()
    page = found[:limit]
    more = len(found) > limit
    return Page(
        items=read_entries(session, [row.id for row in page]),
        next_cursor=encode_cursor("adapters", (page[-1].namespace, page[-1].name)) if more else None,
    )


def _mentioning(statement: Select[str, str, str], word: str) -> Select[str, str, str]:
    """Only adapters that mention the word, in any case, in their reference, base model, card or tags."""
    tagged = select(TagRow.tag).where(TagRow.adapter_id == AdapterRow.id, TagRow.tag.icontains(word, autoescape=True))
    return statement.where(
        (AdapterRow.namespace + "/" + AdapterRow.name).icontains(word, autoescape=True)
        | VersionRow.base_model.icontains(word, autoescape=True)
        | VersionRow.card.icontains(word, autoescape=True)
        | tagged.exists()
    )
