"""Names that clients of vLLM's protocol give to versions: one flat list for the whole service, kept until unloaded."""

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from store.actor import seen
from store.audit import note
from store.database import Database, retried
from store.errors import UnknownReference
from store.hub_models import ModelNameRow
from store.models import AdapterRow, VersionRow, now
from store.records import Version
from store.rows import read_versions


class ModelNames:
    """Name to version. A name is gone with its version; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @retried
    def set(self, name: str, version: Version, instead_of: str | None = None) -> bool:
        """Give the name to a version if it means ``instead_of`` (pinned; None: nothing) at this moment; whether so.

        Raises UnknownReference if the version was deleted since.
        """
        with self.database.session() as session:
            there = select(VersionRow.id).where(VersionRow.id == version.id)
            if session.scalar(there.with_for_update(read=True, key_share=True)) is None:
                raise UnknownReference(version.ref, f"There is no version {version.ref}", ())
            row = session.scalar(select(ModelNameRow).where(ModelNameRow.name == name).with_for_update())
            if _pinned(session, _meaning(name)) != instead_of:
                return False
            if row is None:  # what somebody else inserts meanwhile is a lost race, and never overwritten
                session.add(ModelNameRow(name=name, version_id=version.id, updated_at=now()))
            else:
                row.version_id, row.updated_at = version.id, now()
            of_adapter = (version.namespace, version.name)
            note(session, "name.set", name, adapter=of_adapter, after={"ref": version.ref})
            return True

    @retried
    def forget(self, name: str) -> bool:
        """Take the name away; whether it was there."""
        with self.database.session() as session:
            found = session.execute(_meaning(name)).first()
            if found is None:
                return False
            session.execute(delete(ModelNameRow).where(ModelNameRow.name == name))
            note(session, "name.delete", name, adapter=(found.namespace, found.name))
            return True

    def ref(self, name: str) -> str | None:
        """The pinned reference behind a name, if it has been given to a version that the caller sees."""
        with self.database.reading() as session:
            return _pinned(session, _meaning(name).where(seen(AdapterRow.namespace)))

    def all(self) -> list[tuple[str, Version]]:
        """Every name whose version the caller sees, in order."""
        with self.database.reading() as session:
            given = session.execute(
                select(ModelNameRow.name, ModelNameRow.version_id).order_by(ModelNameRow.name)
            ).all()
            wanted = select(VersionRow).join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
            wanted = wanted.where(VersionRow.id.in_({row.version_id for row in given}), seen(AdapterRow.namespace))
            versions = {version.id: version for version in read_versions(session, wanted)}
        return [(row.name, versions[row.version_id]) for row in given if row.version_id in versions]


def _meaning(name: str) -> Select[str, str, int]:
    """Namespace, name and number of the version that has the name."""
    found = select(AdapterRow.namespace, AdapterRow.name, VersionRow.number)
    found = found.join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
    return found.join(ModelNameRow, ModelNameRow.version_id == VersionRow.id).where(ModelNameRow.name == name)


def _pinned(session: Session, meaning: Select[str, str, int]) -> str | None:
    found = session.execute(meaning).first()
    return None if found is None else f"{found.namespace}/{found.name}@{found.number}"
