"""GET /v1/audit: who changed what, when and from where."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.access import HouseDep, needs
from app.identity.caller import current
from app.moments import time_json
from app.presenting import page_json
from app.schemas_keys import AuditQuery
from store.audit import Entry

router = APIRouter(prefix="/v1/audit", tags=["keys"])


@router.get("", dependencies=[needs("admin")])
def list_audit(house: HouseDep, query: Annotated[AuditQuery, Query()]) -> dict[str, Any]:
    """Changes, newest first, a page at a time: those in the namespaces that the caller administers."""
    page = house.shelves.audit.list(
        key_id=query.key,
        action=query.action,
        namespace=query.namespace,
        adapter=query.adapter,
        since=query.since,
        until=query.until,
        within=current().namespaces("admin"),
        limit=min(query.limit, house.settings.max_page),
        cursor=query.cursor,
    )
    return page_json([entry_json(entry) for entry in page.items], page.next_cursor)


def entry_json(entry: Entry) -> dict[str, Any]:
    """One change."""
    return {
        "id": entry.id,
        "at": time_json(entry.at),
        "actor": entry.actor,
        "key_id": entry.key_id,
        "address": entry.address,
        "request_id": entry.request_id,
        "job_id": entry.job_id,
        "action": entry.action,
        "target": entry.target,
        "before": entry.before,
        "after": entry.after,
    }
