"""Runs the migrations on the connection that ``store.database.Database.migrate`` hands over."""

from typing import Any, Literal

from alembic import context

from store import hub_models, job_models, key_models  # noqa: F401  their tables are among the metadata's
from store.models import Model, UtcDateTime, is_on


def plain_type(kind: str, item: Any, autogen: Any) -> str | Literal[False]:
    """Migrations outlive the models: they name the column type of the database, not our Python type."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Model.metadata,
    render_as_batch=True,
    render_item=plain_type,
    include_object=is_on(connection.dialect.name),
)
with context.begin_transaction():
    context.run_migrations()
