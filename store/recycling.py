"""What owners allow others to find out about their adapters' training, and the images that were found.

Inversion shows what an adapter was trained on. Its owner says whether that may be done at all (`inversion`), and
whether the images may be kept and looked at (`show_surrogates`); nothing was said: neither. Consent is the adapter's,
for all its versions. Taking it back removes the images that are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session
from ulid import ULID

from store.audit import note
from store.database import Database, retried
from store.errors import UnknownSurrogates
from store.locks import hold_blobs
from store.models import AdapterRow, ConsentRow, SurrogateRow, VersionRow, now
from store.records import Version
from store.registry import Registry
from store.resolving import adapter_row


@dataclass(frozen=True, slots=True)
class Consent:
    """What is allowed, and since when (None: it was never said)."""

    inversion: bool
    show_surrogates: bool
    updated_at: datetime | None


NONE = Consent(False, False, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogates:
    """Images of one source, kept: of which version, by which distilled version, in which blob (hex digest)."""

    id: str
    source: str
    distilled: str
    digest: str
    images: int
    px: int
    created_at: datetime


class RecyclingTable:
    """All reading and writing of consents and surrogates; safe from many threads and processes at once."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self.database = database
        self._registry = registry

    def consent(self, namespace: str, name: str) -> Consent:
        """What an adapter's owner allows. Raises UnknownReference."""
        with self.database.reading() as session:
            return _consent(session, adapter_row(session, namespace, name).id)

    @retried
    def set_consent(self, namespace: str, name: str, *, inversion: bool, show_surrogates: bool) -> Consent:
        """Say what is allowed from now on. Images that may no longer be shown are removed. Raises UnknownReference."""
        show = inversion and show_surrogates
        gone: list[str] = []
        with self.database.session() as session:
            adapter = adapter_row(session, namespace, name, lock=True)
            said_before = _consent(session, adapter.id)
            before = {"inversion": said_before.inversion, "show_surrogates": said_before.show_surrogates}
            after = {"inversion": inversion, "show_surrogates": show}
            note(session, "consent.set", f"{namespace}/{name}", adapter=(namespace, name), before=before, after=after)
            session.merge(
                ConsentRow(adapter_id=adapter.id, inversion=inversion, show_surrogates=show, updated_at=now())
            )
            if not show:
                own = SurrogateRow.adapter_id == adapter.id
                gone = list(session.scalars(select(SurrogateRow.digest).where(own)))
                session.execute(delete(SurrogateRow).where(own))
            session.flush()
            said = _consent(session, adapter.id)
        self._registry.remove_unneeded(gone)
        return said

    @retried
    def keep(self, source: Version, distilled: Version, digest: str, *, images: int, px: int) -> bool:
        """Keep a source's images (a stored blob) beside the version that was distilled with them.

        False, and nothing is kept, if its owner does not allow it (any more). Kept once, however often this is called.
        """
        with self.database.session() as session:
            hold_blobs(session, [digest])
            adapter = adapter_row(session, source.namespace, source.name, lock=True)
            if not _consent(session, adapter.id).show_surrogates:
                return False
            same = select(SurrogateRow.id).where(
                SurrogateRow.adapter_id == adapter.id,
                SurrogateRow.distilled_id == distilled.id,
                SurrogateRow.source_ref == source.ref,
            )
            if session.scalar(same) is None:
                session.add(
                    SurrogateRow(
                        id=str(ULID()),
                        adapter_id=adapter.id,
                        source_ref=source.ref,
                        distilled_id=distilled.id,
                        digest=digest,
                        images=images,
                        px=px,
                        created_at=now(),
                    )
                )
        return True

    def surrogates(self, namespace: str, name: str) -> Sequence[Surrogates]:
        """The images kept of an adapter, newest first. Raises UnknownReference."""
        with self.database.reading() as session:
            own = SurrogateRow.adapter_id == adapter_row(session, namespace, name).id
            return _read(session, own)

    def find(self, namespace: str, name: str, surrogates_id: str) -> Surrogates:
        """One set of images of an adapter. Raises UnknownReference, UnknownSurrogates."""
        found = [one for one in self.surrogates(namespace, name) if one.id == surrogates_id]
        if not found:
            raise UnknownSurrogates(f"{namespace}/{name}", surrogates_id)
        return found[0]


def _consent(session: Session, adapter_id: str) -> Consent:
    row = session.get(ConsentRow, adapter_id)
    return NONE if row is None else Consent(row.inversion, row.show_surrogates, row.updated_at)


def _read(session: Session, where: ColumnElement[bool]) -> Sequence[Surrogates]:
    statement = (
        select(SurrogateRow, AdapterRow.namespace, AdapterRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.id == SurrogateRow.distilled_id)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .where(where)
        .order_by(SurrogateRow.created_at.desc(), SurrogateRow.id.desc())
    )
    return [
        Surrogates(
            id=row.id,
            source=row.source_ref,
            distilled=f"{namespace}/{name}@{number}",
            digest=row.digest,
            images=row.images,
            px=row.px,
            created_at=row.created_at,
        )
        for row, namespace, name, number in session.execute(statement)
    ]
