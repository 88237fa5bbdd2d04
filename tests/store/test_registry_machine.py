"""The registry against a dictionary: any order of publishing, naming and deleting gives what the model says."""

import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from store.blobs import LocalBlobs
from store.database import Database
from store.errors import UnknownReference, VersionInUse
from store.registry import Registry
from tests.postgres import Server
from tests.store.making import make_version

names = st.sampled_from(["spam", "ham"])
contents = st.sampled_from("abcd")
aliases = st.sampled_from(["production", "canary"])
numbers = st.integers(1, 5)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self, postgres: Server | None) -> None:
        """On a database of that server, or else on SQLite."""
        super().__init__()
        self.postgres = postgres

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        if self.postgres is None:
            self.url = f"sqlite:///{root / 'spolia.db'}"
        else:
            self.url = self.postgres.create_database(self.postgres.migrated)
        self.database = Database(self.url)
        self.database.migrate()
        self.blobs = LocalBlobs(root / "blobs")
        self.registry = Registry(self.database, self.blobs)
        self.versions: dict[str, dict[int, str]] = {}
        self.aliases: dict[str, dict[str, int]] = {}
        self.last: dict[str, int] = {}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()
        if self.postgres is not None:
            self.postgres.drop_database(self.url)

    @rule(name=names, content=contents)
    def publish(self, name: str, content: str) -> None:
        version, created = self.registry.publish("team", name, make_version(self.blobs, content))
        known = self.versions.setdefault(name, {})
        same = [number for number, there in known.items() if there == content]
        if same:
            assert (version.number, created) == (same[0], False)
        else:
            self.last[name] = self.last.get(name, 0) + 1
            assert (version.number, created) == (self.last[name], True)
            known[version.number] = content

    @rule(name=names, alias=aliases, number=numbers)
    def set_alias(self, name: str, alias: str, number: int) -> None:
        if number in self.versions.get(name, {}):
            self.registry.set_alias("team", name, alias, number)
            self.aliases.setdefault(name, {})[alias] = number
        else:
            with pytest.raises(UnknownReference):
                self.registry.set_alias("team", name, alias, number)

    @rule(name=names, alias=aliases)
    def delete_alias(self, name: str, alias: str) -> None:
        if self.aliases.get(name, {}).pop(alias, None) is None:
            with pytest.raises(UnknownReference):
                self.registry.delete_alias("team", name, alias)
        else:
            self.registry.delete_alias("team", name, alias)

    @rule(name=names, number=numbers, force=st.booleans())
    def delete_version(self, name: str, number: int, force: bool) -> None:
        named = [alias for alias, target in self.aliases.get(name, {}).items() if target == number]
        if number not in self.versions.get(name, {}):
            with pytest.raises(UnknownReference):
                self.registry.delete_version("team", name, number, force)
        elif named and not force:
            with pytest.raises(VersionInUse):
                self.registry.delete_version("team", name, number)
        else:
            self.registry.delete_version("team", name, number, force)
            del self.versions[name][number]
            for alias in named:
                del self.aliases[name][alias]

    @invariant()
    def agrees(self) -> None:
        existing = {name: known for name, known in self.versions.items() if known}
        entries = {entry.name: entry for entry in self.registry.list_adapters().items}
        assert set(entries) == set(existing)
        for name, known in existing.items():
            assert entries[name].versions == len(known)
            assert entries[name].aliases == self.aliases.get(name, {})
            assert entries[name].latest == self.registry.resolve(f"team/{name}")
            assert [version.number for version in self.registry.versions("team", name)] == sorted(known, reverse=True)
            for number, content in known.items():
                weights = self.registry.resolve(f"team/{name}@{number}").files[1]
                assert self.blobs.path(weights.digest).read_bytes() == content.encode()
            for alias, number in self.aliases.get(name, {}).items():
                assert self.registry.resolve(f"team/{name}:{alias}").number == number
        needed = {
            file.digest
            for name in existing
            for version in self.registry.versions("team", name)
            for file in version.files
        }
        assert {digest for digest, _ in self.blobs.ages()} == needed


def test_any_order_of_changes_gives_what_a_dictionary_would(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    run_state_machine_as_test(
        partial(RegistryMachine, server),
        settings=settings(
            max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
