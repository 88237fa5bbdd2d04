"""A folder of small files under content keys, bounded in bytes: what can be computed again, kept while there is room.

Every file ends with the sha256 of what comes before it, so a damaged or half-written one is never believed; it appears
by rename, so a kill leaves at most a file that nobody asks for. The files used longest ago leave first. Several
processes may share the folder. Nothing depends on a file being there.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

DIGEST_BYTES = 32
# A process looks over the folder each time it has added this share of the bound, so that the bound may be passed by as
# much for each process that shares it.
LOOK_AFTER = 0.05
FILL_TO = 0.9  # making room goes down to this share, or every further file would make room again
UNFINISHED = ".new-"
UNFINISHED_AGE_S = 3600.0


def cache_key(kind: str, parts: Sequence[str]) -> str:
    """The key (hex) of something of this kind that depends on `parts` alone."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


class FileCache:
    """Bytes by key in `folder`, at most about `max_bytes` in all. Safe from several threads and processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """The folder is made when the first file is kept; with `max_bytes` 0 nothing is."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._added: int | None = None  # bytes since the last look over the folder; None: never looked

    def get(self, key: str) -> bytes | None:
        """What was kept under this key, if it is here and whole; it then counts as used just now."""
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        payload, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        whole = hashlib.sha256(payload).digest() == digest
        with suppress(OSError):
            if whole:
                os.utime(path)
            else:
                path.unlink()
        return payload if whole else None

    def put(self, key: str, payload: bytes) -> None:
        """Keep these bytes, unless they alone would pass the bound. What the disk refuses is not kept."""
        size = len(payload) + DIGEST_BYTES
        if size > self.max_bytes:
            return
        with suppress(OSError):
            self._make_room(size)
            handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(payload)
                    file.write(hashlib.sha256(payload).digest())
                Path(name).rename(self.folder / key)
            except OSError:
                Path(name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        with self._lock:
            if self._added is not None and self._added + size <= LOOK_AFTER * self.max_bytes:
                self._added += size
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            self._added = size
            files = sorted(self._files(), reverse=True)  # used last first
            kept = size
            full = sum(file_size for _, file_size, _ in files) + size > self.max_bytes
            for used_at, file_size, path in files:
                kept += file_size
                left_behind = path.name.startswith(UNFINISHED) and time.time() - used_at > UNFINISHED_AGE_S
                if left_behind or (full and kept > FILL_TO * self.max_bytes):
                    path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        found: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                state = entry.stat()
                found.append((state.st_mtime, state.st_size, Path(entry.path)))
        return found
