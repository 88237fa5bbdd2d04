"""The store, opened: what both the API's handlers and the worker's jobs work with. Loads no model library."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.job_tables import open_database, open_jobs
from app.settings import Settings
from app.storage import open_blobs, open_uploads
from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.header import Limits
from deltas.tokenizer import TOKENIZER_FILE as BASE_TOKENIZER
from deltas.tokenizer import Tokenizer
from merging.file_cache import FileCache
from serving.errors import AdapterGone
from store.actor import SERVICE, acting
from store.audit import AuditLog
from store.blob_errors import LostBlob, MissingBlob
from store.blobs import Blobs
from store.database import Database
from store.errors import UnknownReference
from store.hub import HubTable
from store.hub_listing import HubListing
from store.hub_uploads import HubUploads
from store.jobs import JobTable
from store.keys import KeyTable
from store.model_names import ModelNames
from store.partial_uploads import PartialUploads
from store.records import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Version
from store.recycling import RecyclingTable
from store.registry import Registry
from store.sketches import SketchTable


@dataclass(frozen=True, slots=True)
class Shelves:
    """The store as the API and the worker both open it, and how adapters are read from it."""

    settings: Settings
    database: Database
    blobs: Blobs
    registry: Registry
    jobs: JobTable
    sketches: SketchTable
    keys: KeyTable
    audit: AuditLog
    hub: HubTable
    hub_listing: HubListing
    hub_uploads: HubUploads
    model_names: ModelNames
    recycling: RecyclingTable
    uploads: PartialUploads

    @property
    def limits(self) -> Limits:
        """What is read of an adapter at most."""
        return Limits(
            header_bytes=self.settings.max_header_bytes,
            config_bytes=self.settings.max_config_bytes,
            tokenizer_bytes=self.settings.max_tokenizer_bytes,
        )

    @property
    def cache(self) -> FileCache:
        """What merges and what-if questions keep for the next one."""
        return FileCache(self.settings.cache_dir, self.settings.merge_cache_bytes)

    def open_adapter(self, version: Version) -> Adapter:
        """The adapter of a published version: its config and its weights' header are read, no tensor.

        Its base model is the one that the registry knows it by, not the trainer's folder that its config may name.
        """
        with self.files_of(version):
            return self._opened(version)

    @contextmanager
    def files_of(self, version: Version) -> Iterator[None]:
        """Read a version's files in this block. Raises LostBlob where one is not there; UnknownReference where the
        version was deleted meanwhile, and its files with it."""
        try:
            yield
        except MissingBlob as error:
            self.registry.resolve(version.ref)
            raise LostBlob(error.digest, version.ref) from error

    def _opened(self, version: Version) -> Adapter:
        digests = {file.name: file.digest for file in version.files}
        config = json.loads(self.blobs.path(digests[CONFIG_FILE]).read_bytes())
        config["base_model_name_or_path"] = version.base_model
        known = digests.get(TOKENIZER_FILE)
        tokenizer = None if known is None else _tokenizer(self.blobs.path(known), self.limits)
        weights = self.blobs.path(digests[WEIGHTS_FILE])
        adapter = Adapter.open(config, weights, limits=self.limits, tokenizer=tokenizer)
        return self.with_base(adapter, version.base_model if version.base_known else None)

    def base_tokenizer(self, base_model: str | None) -> Tokenizer | None:
        """The tokenizer of a base model whose folder is on this machine."""
        base = self.registry.base(base_model) if base_model else None
        path = Path(base.details["folder"]) / BASE_TOKENIZER if base and "folder" in base.details else None
        return _tokenizer(path, self.limits) if path is not None and path.is_file() else None

    def with_base(self, adapter: Adapter, base_model: str | None) -> Adapter:
        """The adapter, able to read the weights of base model `base_model` where these are on this machine."""
        base = self.registry.base(base_model) if base_model and adapter.needs_base else None
        folder = Path(base.details["folder"]) if base and "folder" in base.details else None
        if base is None or folder is None or not folder.is_dir():
            return adapter
        return adapter.with_base(FolderWeights(base.name, folder))

    def adapter_loader(self) -> Callable[[str], Adapter]:
        """For the generation engine: version digest (hex) -> adapter; AdapterGone if the version was deleted.

        Opened ones are kept (a version never changes): reading a header takes as long as reading the weights.
        """

        @lru_cache(maxsize=self.settings.kept_headers)
        def load(digest: str) -> Adapter:
            try:
                with acting(SERVICE):  # whoever chose the digest was asked then whether they may
                    return self.open_adapter(self.registry.resolve(f"sha256:{digest}"))
            except UnknownReference as error:
                raise AdapterGone(digest) from error

        return load


@lru_cache(maxsize=64)
def _tokenizer(path: Path, limits: Limits) -> Tokenizer:
    """Read once for all adapters that share it: neither a blob nor a base model's folder changes."""
    return Tokenizer(path, limits)


def open_shelves(settings: Settings) -> Shelves:
    """Open database and blobs (creating folders, not tables).

    Raises:
        StorageFull, UnsupportedDatabase: when they cannot be opened.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database, blobs = open_database(settings), open_blobs(settings)
    jobs = open_jobs(settings, database)
    registry = Registry(database, blobs, settings.orphan_max_age_s)
    return Shelves(
        settings,
        database,
        blobs,
        registry,
        jobs,
        SketchTable(database),
        KeyTable(database),
        AuditLog(database),
        HubTable(database, blobs),
        HubListing(database),
        HubUploads(database, blobs),
        ModelNames(database),
        RecyclingTable(database, registry),
        open_uploads(settings, blobs),
    )
