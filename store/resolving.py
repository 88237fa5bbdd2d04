"""From a reference to the row it means, or to an error that names what may have been meant.

Reading takes one statement (`lookup`). A change first locks the adapter's row (`lock=True`): all changes to one adapter
happen one after the other, on databases with many writers too.
"""

import difflib
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from store.errors import UnknownReference
from store.models import MAX_INTEGER, AdapterRow, AliasRow, VersionRow
from store.references import Reference
from store.version_query import Owner, whole

_CANDIDATES = 2000
_SHOWN = 8

_NAMED = select(VersionRow).where(Owner.namespace == bindparam("namespace"), Owner.name == bindparam("name"))
_LATEST = whole(_NAMED.where(VersionRow.number == Owner.latest_number))
_NUMBERED = whole(_NAMED.where(VersionRow.number == bindparam("number")))
_ALIASED = whole(
    _NAMED.join(AliasRow, AliasRow.version_id == VersionRow.id).where(
        AliasRow.adapter_id == Owner.id, AliasRow.alias == bindparam("alias")
    )
)
_DIGEST = whole(
    select(VersionRow)
    .where(VersionRow.digest == bindparam("digest"))
    .order_by(VersionRow.created_at, VersionRow.id)
    .limit(1)
)


def lookup(reference: Reference) -> tuple[Select[Any], dict[str, Any]]:
    """The statement, and its parameters, that reads the version a reference means: one row, or none."""
    if reference.digest is not None:
        return _DIGEST, {"digest": reference.digest}
    named = {"namespace": reference.namespace, "name": reference.name}
    if reference.alias is not None:
        return _ALIASED, {**named, "alias": reference.alias}
    if reference.version is not None:
        return _NUMBERED, {**named, "number": min(reference.version, MAX_INTEGER)}
    return _LATEST, named


def find_adapter(session: Session, namespace: str, name: str) -> AdapterRow | None:
    """The row of this name, also when all its versions are gone; locked against other writers where rows lock."""
    return session.scalar(
        select(AdapterRow)
        .where(AdapterRow.namespace == namespace, AdapterRow.name == name)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def adapter_row(session: Session, namespace: str, name: str, *, lock: bool = False) -> AdapterRow:
    """The adapter, which must have a version. Raises UnknownReference."""
    statement = select(AdapterRow).where(
        AdapterRow.namespace == namespace, AdapterRow.name == name, AdapterRow.latest_number.is_not(None)
    )
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement)
    if row is None:
        raise unknown_adapter(session, namespace, name)
    return row


def unknown_adapter(session: Session, namespace: str, name: str) -> UnknownReference:
    """What to raise for a name that no adapter has."""
    ref = f"{namespace}/{name}"
    return UnknownReference(ref, f"There is no adapter {ref}", near_adapters(session, namespace, name))


def version_row(session: Session, reference: Reference, *, lock: bool = False) -> VersionRow:
    """The version a reference means now; with ``lock``, nobody else changes its adapter until the transaction ends.
    Raises UnknownReference.

    A digest that several adapters share means the one that was published first.
    """
    if reference.digest is not None:
        row = session.scalar(
            select(VersionRow)
            .where(VersionRow.digest == reference.digest)
            .order_by(VersionRow.created_at, VersionRow.id)
            .limit(1)
        )
        if row is None:
            raise UnknownReference(str(reference), f"No version has the digest {reference}", ())
        return row
    adapter = adapter_row(session, reference.namespace, reference.name, lock=lock)
    of_adapter = select(VersionRow).where(VersionRow.adapter_id == adapter.id)
    if reference.alias is not None:
        row = session.scalar(
            of_adapter.join(AliasRow, AliasRow.version_id == VersionRow.id).where(
                AliasRow.adapter_id == adapter.id, AliasRow.alias == reference.alias
            )
        )
        missing = f"{adapter.namespace}/{adapter.name} has no alias {reference.alias}"
    else:
        number = adapter.latest_number if reference.version is None else reference.version
        row = session.scalar(of_adapter.where(VersionRow.number == min(number or 0, MAX_INTEGER)))
        missing = f"{adapter.namespace}/{adapter.name} has no version {number}"
    if row is None:
        raise UnknownReference(str(reference), missing, _existing(session, adapter, reference))
    return row


def near_adapters(session: Session, namespace: str, name: str) -> list[str]:
    """Adapters that may have been meant by a name that none has, most likely first."""
    pair = select(AdapterRow.namespace, AdapterRow.name).where(AdapterRow.latest_number.is_not(None))
    # Bounded, so that a typing error costs the same on a large registry: neighbours first, then everybody.
    queries = (
        pair.where(AdapterRow.name == name).order_by(AdapterRow.namespace).limit(_SHOWN),
        pair.where(AdapterRow.namespace == namespace).order_by(AdapterRow.name).limit(_CANDIDATES),
        pair.order_by(AdapterRow.namespace, AdapterRow.name).limit(_CANDIDATES),
    )
    same_name, neighbours, everybody = (
        [f"{row.namespace}/{row.name}" for row in session.execute(query)] for query in queries
    )
    by_name: dict[str, list[str]] = {}
    for ref in dict.fromkeys(neighbours + everybody):
        by_name.setdefault(ref.partition("/")[2].lower(), []).append(ref)
    folded = {ref.lower(): ref for ref in neighbours + everybody}
    found = [
        *same_name,
        *(folded[ref] for ref in difflib.get_close_matches(f"{namespace}/{name}".lower(), folded, n=4)),
        *(ref for like in difflib.get_close_matches(name.lower(), by_name, n=4) for ref in by_name[like]),
    ]
    return list(dict.fromkeys(found))[:_SHOWN]


def _existing(session: Session, adapter: AdapterRow, reference: Reference) -> list[str]:
    """This adapter's aliases and newest versions; the aliases closest to the one asked for come first."""
    ref = f"{adapter.namespace}/{adapter.name}"
    aliases = list(
        session.scalars(select(AliasRow.alias).where(AliasRow.adapter_id == adapter.id).order_by(AliasRow.alias))
    )
    numbers = session.scalars(
        select(VersionRow.number)
        .where(VersionRow.adapter_id == adapter.id)
        .order_by(VersionRow.number.desc())
        .limit(_SHOWN)
    )
    close = difflib.get_close_matches(reference.alias or "", aliases, n=_SHOWN)
    named = [f"{ref}:{alias}" for alias in dict.fromkeys([*close, *aliases])][:_SHOWN]
    pinned = [f"{ref}@{number}" for number in numbers]
    return named + pinned if reference.alias is not None else pinned + named
