"""From the last releases to this one and back: their own code, kept as it was, works before and after the upgrade."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.job_runner import JobRunner
from app.main import settle
from app.merging_service import draft_merge
from app.revoked import Revoked
from app.schemas import MergeBody
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.worker import KINDS
from deltas.factors import norm
from store.revoking import revoke
from tests.upgrade.conftest import Old

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
BOTH = {"me/spam@1": 0.7, "me/dates:live": 0.5}


@pytest.fixture
def settings(tmp_path: Path, url: str | None) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=url, merge_workers=1)  # type: ignore[arg-type]


@pytest.fixture
def new(settings: Settings) -> Iterator[Shelves]:
    """The store of this release, as long as nobody has started it."""
    shelves = open_shelves(settings)
    yield shelves
    shelves.database.close()


def listed(new: Shelves, **filters: Any) -> list[str]:
    return [f"{one.namespace}/{one.name}" for one in new.registry.list_adapters(**filters).items]


def read(new: Shelves, ref: str) -> list[float]:
    adapter = new.open_adapter(new.registry.resolve(ref))
    return [norm(adapter.factors(name)) for name in adapter.modules]


def work(new: Shelves, job_id: str) -> Any:
    """What comes of a queued job."""
    job = new.jobs.claim_next(KINDS)
    assert job is not None
    assert job.id == job_id
    JobRunner(new, KINDS).run_one(job)
    return new.jobs.get(job_id).result


def schema(new: Shelves, number: str | None = None) -> str:
    """The number of the schema in the database, after it was set to this one."""
    with new.database.session() as session:
        if number is not None:
            session.execute(text("UPDATE alembic_version SET version_num = :number"), {"number": number})
        return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def test_upgrade_and_rollback(release: str, old: Old, new: Shelves) -> None:
    old.open(allow_newer=False)
    assert old.push(ref="me/spam", folder=str(EXAMPLES / "spam"), tags=["mail", "short"]) == "me/spam@1"
    assert old.push(ref="me/dates", folder=str(EXAMPLES / "dates"), tags=[]) == "me/dates@1"
    assert old.alias(ref="me/dates", alias="live", number=1) == "me/dates@1"
    merged = old.work(job_id=old.enqueue(name="me/both", sources=BOTH))
    assert merged["ref"] == "me/both@1"
    waiting = old.enqueue(name="me/later", sources={**BOTH, "me/dates:live": -0.5})
    assert schema(new) == release

    # Upgrade: all that was there is there, and the job that waited is done by this release.
    settle(new)
    newest = schema(new)
    assert listed(new) == ["me/both", "me/dates", "me/spam"]
    assert listed(new, tag="mail", target="q_proj", q="card") == ["me/spam"]
    assert new.registry.resolve("me/dates:live").ref == "me/dates@1"
    sources = [(source.ref, source.weight) for source in new.registry.resolve("me/both").sources]
    assert sources == [("me/spam@1", 0.7), ("me/dates@1", 0.5)]
    assert new.registry.report(new.registry.resolve("me/both")) is not None
    assert new.jobs.get(merged_job(new, "me/both@1")).result == merged
    for name in ("spam", "dates", "both"):
        assert read(new, f"me/{name}") == pytest.approx(old.read(ref=f"me/{name}"), rel=1e-6)
    assert work(new, waiting)["ref"] == "me/later@1"
    revoke(new.database, "me/spam@1", "Its data leaked.")

    # Rollback: the last release, started anew on the tables as they are, reads, uploads, changes, deletes and merges.
    knows_newer = release != "0003"
    if not knows_newer:
        schema(new, release)
    old.open(allow_newer=knows_newer)
    assert old.list() == ["me/both", "me/dates", "me/later", "me/spam"]
    assert old.read(ref="me/later") == pytest.approx(read(new, "me/later"), rel=1e-6)
    assert old.push(ref="me/units", folder=str(EXAMPLES / "measure"), tags=["si"]) == "me/units@1"
    assert old.push(ref="me/dates", folder=str(EXAMPLES / "language"), tags=["words"]) == "me/dates@2"
    assert old.tags(ref="me/spam", tags=["short", "post"]) == ["post", "short"]
    old.delete(ref="me/later", number=1)
    blend = {"me/units@1": 0.4, "me/both@1": 0.6}
    assert old.work(job_id=old.enqueue(name="me/blend", sources=blend))["ref"] == "me/blend@1"
    assert old.work(job_id=old.enqueue(name="me/grandchild", sources={"me/blend@1": 1.0, "me/units@1": 1.0}))["ref"]
    queued = old.enqueue(name="me/free", sources={"me/units@1": 1.0, "me/dates@2": 1.0})

    # Upgrade again: this release finds, reads and goes on with what the last one wrote.
    if not knows_newer:
        schema(new, newest)
    settle(new)
    assert schema(new) == newest
    assert listed(new) == ["me/blend", "me/both", "me/dates", "me/grandchild", "me/spam", "me/units"]
    assert listed(new, tag="si") == ["me/units"]
    assert listed(new, tag="words", target="down_proj") == ["me/dates"]
    assert (listed(new, tag="post"), listed(new, tag="mail")) == (["me/spam"], [])
    assert new.registry.get_adapter("me", "dates").latest.number == 2
    assert read(new, "me/blend") == pytest.approx(old.read(ref="me/blend"), rel=1e-6)
    for name in ("blend", "grandchild"):  # made from what is revoked, by a release that does not know that
        with pytest.raises(Revoked, match="me/spam@1"):
            draft_merge(new, MergeBody.model_validate({"name": "me/x", "sources": [f"me/{name}"], "method": "sum"}))
    assert work(new, queued)["ref"] == "me/free@1"
    assert listed(new, q="free") == ["me/free"]


def merged_job(new: Shelves, ref: str) -> str:
    """The job whose result this version is."""
    return next(job.id for job in new.jobs.list(state="succeeded").items if job.result and job.result["ref"] == ref)
