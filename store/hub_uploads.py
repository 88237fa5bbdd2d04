"""What is being uploaded by the Hub's protocol, before a commit names it: announced objects and the pieces that came.

The rows let any process of the service take the next piece, and tell garbage collection that the pieces are needed.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.blob_errors import UnknownTransfer
from store.blobs import Blobs
from store.database import Database, retried
from store.hub_models import HubPartRow, HubUploadRow
from store.locks import hold_blobs
from store.models import now
from store.records import BlobRef

LIFETIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class HubUpload:
    """Leave to upload. ``oid``: sha256 of the one object that is expected; None where many pieces come."""

    id: str
    oid: str | None
    size_bytes: int


class HubUploads:
    """Uploads by an id that cannot be guessed; each method is one transaction."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs

    @retried
    def open(self, oid: str | None = None, size_bytes: int = 0) -> HubUpload:
        """A new upload; it is forgotten after a day."""
        upload = HubUpload(secrets.token_hex(16), oid, size_bytes)
        with self.database.session() as session:
            session.add(HubUploadRow(id=upload.id, oid=oid, size_bytes=size_bytes, created_at=now()))
        return upload

    def get(self, upload_id: str) -> HubUpload:
        """The upload. Raises UnknownTransfer."""
        with self.database.reading() as session:
            row = _row(session, upload_id)
            return HubUpload(row.id, row.oid, row.size_bytes)

    @retried
    def keep(self, upload_id: str, name: str, blob: BlobRef) -> None:
        """A piece has come, and replaces one of the same name. Raises UnknownTransfer, MissingBlob."""
        with self.database.session() as session:
            _row(session, upload_id)
            hold_blobs(session, [blob.digest])
            self.blobs.size(blob.digest)
            session.merge(HubPartRow(upload_id=upload_id, name=name, digest=blob.digest, size_bytes=blob.size_bytes))

    def parts(self, upload_id: str, names: Collection[str] | None = None) -> dict[str, BlobRef]:
        """The pieces that came, or those of them that are named. Raises UnknownTransfer."""
        of_upload = select(HubPartRow).where(HubPartRow.upload_id == upload_id)
        if names is not None:
            of_upload = of_upload.where(HubPartRow.name.in_(names))
        with self.database.reading() as session:
            _row(session, upload_id)
            return {row.name: BlobRef(row.digest, row.size_bytes) for row in session.scalars(of_upload)}

    @retried
    def close(self, upload_id: str) -> list[str]:
        """Forget an upload; the digests of its pieces, which nothing here needs any more. Nothing if it is gone."""
        with self.database.session() as session:
            row = session.get(HubUploadRow, upload_id)
            return [] if row is None else _forget(session, row)

    @retried
    def sweep(self) -> list[str]:
        """Forget what is older than a day; the digests of its pieces."""
        with self.database.session() as session:
            old = session.scalars(select(HubUploadRow).where(HubUploadRow.created_at < now() - LIFETIME).limit(100))
            return [digest for row in old.all() for digest in _forget(session, row)]


def _row(session: Session, upload_id: str) -> HubUploadRow:
    row = session.get(HubUploadRow, upload_id)
    if row is None or row.created_at < now() - LIFETIME:
        raise UnknownTransfer
    return row


def _forget(session: Session, row: HubUploadRow) -> list[str]:
    digests = list(session.scalars(select(HubPartRow.digest).where(HubPartRow.upload_id == row.id)))
    session.delete(row)
    return digests
