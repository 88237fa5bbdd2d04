"""How the tables stand: at which migration, and at which this code needs them to be."""

from functools import cache

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from store.database import Database, migration_folder


def behind(database: Database) -> tuple[str | None, str] | None:
    """The tables' migration and the newest one that this code knows, where the tables are older; else None.

    Tables that are newer than this code are none of its business: so an upgrade can be rolled back.
    """
    with database.reading() as session:
        now = MigrationContext.configure(session.connection()).get_current_revision()
    newest, known = _revisions()
    return (now, newest) if now is None or (now in known and now != newest) else None


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The newest migration, and all."""
    scripts = ScriptDirectory(str(migration_folder()))
    return scripts.get_current_head() or "", frozenset(script.revision for script in scripts.walk_revisions())
