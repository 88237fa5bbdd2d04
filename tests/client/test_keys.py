"""`spolia keys` on the database itself, before any service runs, and the Python client with a key."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.client import Client, SpoliaError
from app.key_grants import read_expiry, read_grants
from app.settings import Settings
from tests.app.conftest import running
from tests.client.conftest import SPOLIA


def keys(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`spolia keys … --local` on this data folder."""
    env = os.environ | {"SPOLIA_DATA_DIR": str(data), "NO_COLOR": "1"}
    return subprocess.run([SPOLIA, "keys", *words, "--local"], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[Client]:
    """A client with the first key of a service, made before it ran."""
    data = tmp_path_factory.mktemp("keys")
    made = keys(data, "create", "root", "--grant", "*=admin")
    assert made.returncode == 0, made.stderr
    assert "shown this once" in made.stderr
    with (
        running(Settings(data_dir=data, threads=1, merge_workers=1)) as service,
        Client(f"http://127.0.0.1:{service.port}", made.stdout.strip()) as client,
    ):
        yield client


def test_a_list_without_keys_says_so(tmp_path: Path) -> None:
    listed = keys(tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith("No keys.")
    assert keys(tmp_path, "list", "--json").stdout.split() == ["[]"]


def test_the_first_key_is_made_on_the_database(root: Client) -> None:
    assert root.whoami()["grants"] == {"*": ["admin"]}
    with Client(root.url, api_key="spolia_nonsense") as stranger, pytest.raises(SpoliaError) as refused:
        stranger.whoami()
    assert (refused.value.status, refused.value.slug) == (401, "unauthorized")


def test_keys_come_and_go(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    made = root.create_key("ci", {"team": ["write"], "*": ["read"]}, expires_at=tomorrow, limits={"jobs": 2})
    assert made["limits"] == {"jobs": 2}
    monkeypatch.setenv("SPOLIA_API_KEY", made["key"])
    with Client(root.url) as ci:
        assert ci.whoami()["name"] == "ci"
        with pytest.raises(SpoliaError, match="does not hold the scope 'admin'"):
            list(ci.keys())
        root.revoke_key(made["id"])
        with pytest.raises(SpoliaError, match="revoked"):
            ci.whoami()
    listed = next(root.keys())
    assert (listed["id"], listed["state"]) == (made["id"], "revoked")
    assert [entry["target"] for entry in root.audit(action="key.revoke")] == [made["id"]]


def test_the_shell_manages_keys_of_a_service(root: Client) -> None:
    key = root._http._http.headers["Authorization"].removeprefix("Bearer ")
    env = os.environ | {"SPOLIA_URL": root.url, "SPOLIA_API_KEY": key, "NO_COLOR": "1"}

    def spolia(*words: str) -> Any:
        done = subprocess.run([SPOLIA, *words], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = json.loads(
        spolia("keys", "create", "lab", "--grant", "lab=read,generate", "--expires", "30d", "--tokens", "500", "--json")
    )
    assert made["grants"] == {"lab": ["read", "generate"]}
    assert made["limits"] == {"tokens_per_minute": 500}
    assert made["id"] in spolia("keys", "list")
    assert "revoked" in spolia("keys", "revoke", made["id"])


def test_what_makes_no_sense_is_said_in_one_sentence(tmp_path: Path) -> None:
    for words, said in (
        (("create", "x", "--grant", "team"), "is not NAMESPACE=SCOPE"),
        (("create", "x", "--grant", "team=fly"), "grants.team.0"),
    ):
        done = keys(tmp_path, *words)
        assert done.returncode != 0
        assert said in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr


def test_grants_and_times_are_read_as_written() -> None:
    assert read_grants(["a=read", "a=write", "*=merge"]) == {"a": ["read", "write"], "*": ["merge"]}
    assert read_expiry("2030-01-31") == datetime(2030, 1, 31, tzinfo=UTC)
    with pytest.raises(ValueError, match="is no time"):
        read_expiry("soon")
    assert timedelta(hours=11) < read_expiry("12h") - datetime.now(UTC) < timedelta(hours=13)
