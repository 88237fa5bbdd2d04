"""Which runtimes load a version, and the files that satisfy one of them.

Verdicts read an adapter's header and config. Exports read its tensors and are written to a temporary folder, one at a
time; the folder is gone when the answer is.
"""

import hashlib
import json
import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter

from app.errors import sentence
from app.shelves import Shelves
from deltas.architecture import Architecture, read_architecture
from deltas.errors import DeltaError
from deltas.exporting.export import Export, export_for
from deltas.runtime import Facts, Verdict, runtimes
from store.blob_errors import MissingBlob
from store.records import Version

Json = dict[str, Any]
SUMMARY_FILE = "spolia_export.json"
CHUNK_BYTES = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever they are written


@dataclass(frozen=True, slots=True)
class Exported:
    """One file, ready to be sent, in a folder of its own that its reader removes."""

    path: Path
    folder: Path
    filename: str
    media_type: str
    digest: str  # sha256, hex
    summary: Json


class Words:
    """The words of the versions that were asked for last, in no more than a few megabytes; from any thread."""

    def __init__(self, most: int = 10_000) -> None:
        self._known: OrderedDict[tuple[object, ...], dict[str, str]] = OrderedDict()
        self._lock = threading.Lock()
        self._most = most

    def get(self, asked: tuple[object, ...]) -> dict[str, str] | None:
        """What is known; it must not be changed."""
        with self._lock:
            if asked in self._known:
                self._known.move_to_end(asked)
            return self._known.get(asked)

    def put(self, asked: tuple[object, ...], words: dict[str, str]) -> None:
        """Keep this, and forget what was not asked for the longest."""
        with self._lock:
            self._known[asked] = words
            if len(self._known) > self._most:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Exporter:
    """Judges and exports versions; exports run one at a time, since each may keep a core busy for seconds."""

    shelves: Shelves
    limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    known_words: Words = field(default_factory=Words)

    def facts(self, version: Version) -> Facts:
        """What verdicts about a version are made from."""
        return Facts(self.shelves.open_adapter(version), self._architecture(version))

    def verdicts(self, version: Version) -> list[Verdict]:
        """One for each runtime, by name."""
        facts = self.facts(version)
        return [runtime.verdict(facts) for runtime in runtimes().values()]

    def words(self, version: Version) -> dict[str, str] | None:
        """Each runtime's verdict in a word; None where the files cannot be read, which must not hide the rest.

        Judged once: what a version is never changes, nor does its base model while the service runs.
        """
        asked = (version.digest, version.base_model, version.base_known)
        if (words := self.known_words.get(asked)) is None:
            try:
                words = {verdict.target: verdict.word for verdict in self.verdicts(version)}
            except (OSError, DeltaError, MissingBlob):
                return None
            self.known_words.put(asked, words)
        return words

    def export(self, version: Version, target: str, max_rank: int | None) -> Exported:
        """The version in the form of one runtime: a zip of PEFT's files, or a GGUF file.

        Raises:
            UnknownRuntime, NotExportable, NonFiniteTensor, MissingBaseTensor: with what is wrong.
        """
        facts = self.facts(version)
        folder = Path(tempfile.mkdtemp(prefix="export-", dir=self._spool()))
        try:
            made = export_for(facts.adapter, target, folder / "files", base=facts.base, max_rank=max_rank)
            return self._packed(version, made, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _spool(self) -> Path:
        folder = self.shelves.settings.spool_dir
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _architecture(self, version: Version) -> Architecture | None:
        """The version's base model, where it is on this machine."""
        base = self.shelves.registry.base(version.base_model) if version.base_model else None
        folder = base.details.get("folder") if base else None
        if base is None or folder is None:
            return None
        return read_architecture(base.name, Path(str(folder)), base.modules)

    def _packed(self, version: Version, made: Export, folder: Path) -> Exported:
        stem = f"{version.namespace}-{version.name}-{version.number}-{made.target}"
        summary = made.describe()
        if len(made.files) == 1:
            path, media_type = made.folder / made.files[0], "application/octet-stream"
        else:
            content = {"digest": f"sha256:{version.digest}", **summary, "lost_by_module": dict(made.lost_by_module)}
            (made.folder / SUMMARY_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
            path, media_type = folder / "export.zip", "application/zip"
            pack(path, made.folder, (*made.files, SUMMARY_FILE))
            shutil.rmtree(made.folder)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Exported(path, folder, f"{stem}{path.suffix}", media_type, digest, summary)


def pack(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """A zip of these files of `folder`, uncompressed (factors do not shrink), that depends on their bytes alone."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for name in names:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            large = (folder / name).stat().st_size >= zipfile.ZIP64_LIMIT
            with (folder / name).open("rb") as source, zipped.open(entry, "w", force_zip64=large) as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)


def verdict_json(verdict: Verdict) -> Json:
    """One verdict as the API shows it."""
    return {
        "target": verdict.target,
        "version": verdict.version,
        "verdict": verdict.word,
        "loads_unchanged": verdict.loads_unchanged,
        "loads_after_export": verdict.loads_after_export,
        "reasons": [sentence(reason) for reason in verdict.reasons],
        "changes": [sentence(change) for change in verdict.changes],
        "settings": dict(verdict.settings),
    }


def compatibility_json(version: Version, verdicts: Sequence[Verdict]) -> Json:
    """What every runtime makes of a version."""
    return {
        "ref": version.ref,
        "digest": f"sha256:{version.digest}",
        "verdicts": [verdict_json(verdict) for verdict in verdicts],
    }
