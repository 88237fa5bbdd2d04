"""The folder, shared with the servers, in which sets lie in vLLM's form: one folder a set, named by its contents.

The served name of a set is a digest of its version digests, its weights and the form it is written in, never a name
that users gave. A new version is so a new name: neither weights nor keys and values that a server keeps for a name
(vLLM keys its prefix cache by name and path, vllm-project/vllm#42125) can belong to anything else.

Folders appear by rename, whole; those used longest ago leave when a bound on bytes is passed.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from deltas.adapter import Adapter
from serving.adapter_set import AdapterSet
from serving.base_model import BaseInfo
from serving.errors import AdapterLoadFailed, AdapterNotServable, ServingError
from serving.generation import AppliedSet
from serving.resident import check_servable
from serving.vllm.export import Member, beyond_factors, write_set, write_zeros

PREFIX = "spolia-"
_FORM = 1  # of the files written here; another number gives other names
_NOTE = "spolia_set.json"
_UNFINISHED = ".new-"
_GRACE_S = 600.0  # a server may read a folder a little after the last request that we know of


@dataclass(frozen=True, slots=True)
class Shelved:
    """A set in vLLM's form. `name`: under which servers know it; `applied`: how it was formed."""

    name: str
    applied: AppliedSet
    size_bytes: int


def served_name(adapters: AdapterSet, max_rank: int) -> str:
    """The name of a set (in canonical form) on the servers."""
    members = [[digest, weight.hex()] for digest, weight in adapters]
    document = {"form": _FORM, "max_rank": max_rank, "members": members}
    return PREFIX + sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class Shelf:
    """Sets below `folder`, at most about `max_bytes` in all. Safe from several threads and processes."""

    def __init__(
        self, folder: Path, base: BaseInfo, open_adapter: Callable[[str], Adapter], *, max_rank: int, max_bytes: int
    ) -> None:
        self.folder, self.max_rank, self.max_bytes = folder, max_rank, max_bytes
        self._base, self._open = base, open_adapter
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{_UNFINISHED}*"):
            if time.time() - path.stat().st_mtime > _GRACE_S:
                shutil.rmtree(path, ignore_errors=True)

    def get(self, adapters: AdapterSet, keep: Collection[str] = ()) -> Shelved:
        """The set in vLLM's form (an update of zeros for the empty one), written if it is not there; the names in
        `keep` do not make room for it.

        Reads and computes: not for an event loop.

        Raises AdapterNotServable, AdapterModuleMissing, AdapterShapeMismatch, AdapterLoadFailed.
        """
        name = served_name(adapters, self.max_rank)
        known = self._read(name)
        if known is not None:
            return known
        staging = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            members = [(digest, self._checked(digest), weight) for digest, weight in adapters]
            self._write(members, staging)
            with suppress(OSError):  # another thread or process was faster: the same contents
                staging.rename(self.folder / name)
        except ServingError:
            raise
        except Exception as error:
            raise AdapterLoadFailed(_named(adapters), f"{type(error).__name__}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._make_room({*keep, name})
        written = self._read(name)
        if written is None:
            raise AdapterLoadFailed(_named(adapters), "its folder for the vLLM servers could not be put in place")
        return written

    def _make_room(self, keep: Collection[str]) -> None:
        """Remove the sets used longest ago until the rest fits; never those in `keep`, nor any used just now."""
        found = []
        for path in self.folder.glob(f"{PREFIX}*"):
            with suppress(OSError):
                found.append((path.stat().st_mtime, _size(path), path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total <= self.max_bytes or time.time() - used < _GRACE_S:
                return
            if path.name not in keep:
                gone = path.with_name(f"{_UNFINISHED}{path.name}")  # renamed first: never half there under its name
                with suppress(OSError):
                    path.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
                    total -= size

    def _read(self, name: str) -> Shelved | None:
        """A set that lies here; it then counts as used just now."""
        path = self.folder / name
        try:
            note = json.loads((path / _NOTE).read_text("utf-8"))
            os.utime(path)
            return Shelved(name, AppliedSet(**note), _size(path))
        except OSError:
            return None

    def _checked(self, digest: str) -> Adapter:
        try:
            adapter = self._open(digest)
        except ServingError:
            raise
        except Exception as error:  # of the registry or of the files; it must be said which adapter it was
            raise AdapterLoadFailed(digest, f"{type(error).__name__}: {error}") from error
        if reasons := beyond_factors(adapter):
            raise AdapterNotServable(digest, adapter.family, reasons)
        check_servable(digest, adapter, self._base.name, self._base.modules)
        return adapter

    def _write(self, members: list[Member], folder: Path) -> None:
        if members:
            applied = write_set(members, folder, base=self._base.name, max_rank=self.max_rank)
        else:
            applied = write_zeros(folder, base=self._base.name, modules=self._base.modules)
        (folder / _NOTE).write_text(json.dumps(asdict(applied)) + "\n", "utf-8")
        folder.chmod(0o755)  # servers may run as another user; temporary folders are private
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _named(adapters: AdapterSet) -> str:
    return adapters[0][0] if adapters else "of zeros"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
