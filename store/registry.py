"""The registry: which adapters there are, their versions, names, tags and descent."""

from collections.abc import Mapping, Sequence
from typing import Any

from store.blobs import Blobs
from store.database import Database
from store.records import AdapterEntry, Base, NewVersion, Page, Source, Version

__all__ = ["AdapterEntry", "Base", "NewVersion", "Page", "Registry", "Source", "Version"]


class Registry:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs

    def publish(self, namespace: str, name: str, new: NewVersion) -> tuple[Version, bool]:
        raise NotImplementedError

    def resolve(self, ref: str) -> Version:
        raise NotImplementedError

    def list_adapters(
        self,
        base_model: str | None = None,
        rank: int | None = None,
        target: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[AdapterEntry]:
        raise NotImplementedError

    def get_adapter(self, namespace: str, name: str) -> AdapterEntry:
        raise NotImplementedError

    def versions(self, namespace: str, name: str) -> list[Version]:
        """Newest first."""
        raise NotImplementedError

    def set_alias(self, namespace: str, name: str, alias: str, version: int) -> Version:
        raise NotImplementedError

    def delete_alias(self, namespace: str, name: str, alias: str) -> None:
        raise NotImplementedError

    def set_tags(self, namespace: str, name: str, tags: Sequence[str]) -> tuple[str, ...]:
        raise NotImplementedError

    def delete_version(self, namespace: str, name: str, number: int, force: bool = False) -> None:
        raise NotImplementedError

    def collect_garbage(self, older_than_s: float) -> int:
        """Remove blobs that no version needs and that are older than this; how many."""
        raise NotImplementedError

    def find_by_recipe(self, recipe_digest: str, namespace: str | None = None, name: str | None = None) -> Version | None:
        raise NotImplementedError

    def sources(self, version: Version) -> list[Source]:
        """The leaves of its lineage."""
        raise NotImplementedError

    def report(self, version: Version) -> dict[str, Any] | None:
        raise NotImplementedError

    def upsert_base(
        self, name: str, fingerprint: str, modules: Mapping[str, tuple[int, int]], details: Mapping[str, Any]
    ) -> Base:
        raise NotImplementedError

    def base(self, name: str) -> Base | None:
        raise NotImplementedError

    def bases(self) -> list[Base]:
        raise NotImplementedError
