"""Names that clients of vLLM's protocol give to versions: one flat list for the whole service, kept until unloaded."""

from sqlalchemy import delete, select

from store.actor import seen
from store.audit import note
from store.database import Database, retried
from store.hub_models import ModelNameRow
from store.models import AdapterRow, VersionRow, now
from store.records import Version
from store.rows import read_versions


class ModelNames:
    """Name to version. A name is gone with its version; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @retried
    def set(self, name: str, version: Version) -> None:
        """Give the name to a version, whatever it meant before."""
        with self.database.session() as session:
            session.merge(ModelNameRow(name=name, version_id=version.id, updated_at=now()))
            of_adapter = (version.namespace, version.name)
            note(session, "name.set", name, adapter=of_adapter, after={"ref": version.ref})

    @retried
    def forget(self, name: str) -> bool:
        """Take the name away; whether it was there."""
        named = (
            select(AdapterRow.namespace, AdapterRow.name)
            .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
            .join(ModelNameRow, ModelNameRow.version_id == VersionRow.id)
            .where(ModelNameRow.name == name)
        )
        with self.database.session() as session:
            found = session.execute(named).first()
            if found is None:
                return False
            session.execute(delete(ModelNameRow).where(ModelNameRow.name == name))
            note(session, "name.delete", name, adapter=(found.namespace, found.name))
            return True

    def ref(self, name: str) -> str | None:
        """The pinned reference behind a name, if it has been given to a version that the caller sees."""
        statement = (
            select(AdapterRow.namespace, AdapterRow.name, VersionRow.number)
            .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
            .join(ModelNameRow, ModelNameRow.version_id == VersionRow.id)
            .where(ModelNameRow.name == name, seen(AdapterRow.namespace))
        )
        with self.database.reading() as session:
            found = session.execute(statement).first()
        return None if found is None else f"{found.namespace}/{found.name}@{found.number}"

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
