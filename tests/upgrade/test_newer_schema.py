"""Tables of a newer release: whatever begins to work on them refuses in one sentence, unless it was told to go on."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from app.cli import main
from app.client_http import SpoliaError
from app.identity.exposure import RemoteRefused, check_exposure
from app.job_worker import JobWorker
from app.local_keys import open_local_keys
from app.main import refuse_newer_schema
from app.settings import Settings
from store.database import Database
from store.errors import SchemaNewer
from tests.postgres import Server

REFUSED = "brought to schema 9999 by a newer release"


def make_newer(url: str) -> None:
    database = Database(url)
    database.migrate()
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """The settings of a service whose tables are newer than itself, also as the environment has them."""
    make_newer(f"sqlite:///{tmp_path / 'spolia.db'}")
    monkeypatch.setenv("SPOLIA_DATA_DIR", str(tmp_path))
    return Settings


def gc(settings: Settings) -> None:
    """`spolia gc`, which says what is wrong on its error output and ends with 1."""
    main()


def keys(settings: Settings) -> None:
    with open_local_keys(settings):
        pass


def serve_beyond_loopback(settings: Settings) -> None:
    with suppress(RemoteRefused):  # for want of a key
        check_exposure(settings.model_copy(update={"host": "0.0.0.0"}))


STARTS = {"serve": refuse_newer_schema, "serve beyond loopback": serve_beyond_loopback, "keys": keys, "gc": gc}


@pytest.mark.parametrize("start", STARTS)
def test_what_works_on_the_database_refuses_a_newer_one(
    start: str, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["spolia", "gc"])
    with pytest.raises((SchemaNewer, SpoliaError, SystemExit)) as refused:
        STARTS[start](settings())
    said = capsys.readouterr().err or str(refused.value)
    assert REFUSED in said
    assert said.strip().count("\n") == 0
    monkeypatch.setenv("SPOLIA_ALLOW_NEWER_SCHEMA", "true")
    try:
        STARTS[start](settings())
    except SystemExit as ended:
        assert not ended.code  # noqa: PT017 - how a verb that went well ends


def test_a_worker_refuses_a_newer_database(postgres: Server, tmp_path: Path) -> None:
    url = postgres.create_database(postgres.migrated)
    make_newer(url)
    settings = Settings(data_dir=tmp_path, database_url=url, jobs="distributed")  # type: ignore[arg-type]
    with pytest.raises(SchemaNewer, match=REFUSED):
        asyncio.run(JobWorker(settings, {"merges": 1}).run())
    postgres.drop_database(url)
