"""Files as the Hub's protocol lists them: git's ids for small ones, LFS pointers for large ones."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from app.hub.paths import mode_of
from app.settings import Settings
from store.blob_errors import LostBlob, MissingBlob
from store.blobs import Blobs
from store.hub_records import Commit
from store.records import BlobRef

Json = dict[str, Any]


class Trees:
    """Lists the files of commits. Git's ids are computed once for each blob: a blob never changes."""

    def __init__(self, blobs: Blobs, settings: Settings) -> None:
        self._settings, self._blobs = settings, blobs
        self._blob_id = lru_cache(maxsize=65_536)(lambda digest: git_id(blobs.path(digest).read_bytes()))

    def entries(self, commit: Commit, *, expand: bool = False) -> list[Json]:
        """Every file, as list_repo_tree and get_paths_info read it."""
        return [self.entry(path, blob, commit if expand else None) for path, blob in commit.files.items()]

    def entry(self, path: str, blob: BlobRef, commit: Commit | None = None) -> Json:
        """One file; with its last commit where that is asked for."""
        entry = {"type": "file", "path": path, "size": blob.size_bytes, "oid": self.git_oid(path, blob)}
        if self._is_lfs(path, blob):
            entry["lfs"] = {
                "oid": blob.digest,
                "size": blob.size_bytes,
                "pointerSize": len(pointer(blob)),
            }
        if commit is not None:
            date = hub_time(commit.created_at)
            entry["lastCommit"] = {"id": commit.oid, "title": commit.words.summary, "date": date}
        return entry

    def siblings(self, commit: Commit, *, blobs: bool) -> list[Json]:
        """Every file, as model_info reads it."""
        return [
            {"rfilename": path}
            if not blobs
            else {
                "rfilename": path,
                "size": blob.size_bytes,
                "blobId": self.git_oid(path, blob),
                **self._sibling_lfs(path, blob),
            }
            for path, blob in commit.files.items()
        ]

    def known_oid(self, files: Mapping[str, BlobRef], path: str) -> str | None:
        """What an uploading client compares its file with: git's id, or the sha256 of a large one. None where the file
        is lost too: the client would keep back what brings it back."""
        blob = files.get(path)
        if blob is None or not self._blobs.exists(blob.digest):
            return None
        return blob.digest if self._is_lfs(path, blob) else self.git_oid(path, blob)

    def git_oid(self, path: str, blob: BlobRef) -> str:
        """What git would call the file, or the pointer that stands for a large one."""
        if self._is_lfs(path, blob):
            return git_id(pointer(blob))
        try:
            return self._blob_id(blob.digest)
        except MissingBlob as error:
            raise LostBlob(blob.digest, path) from error

    def _is_lfs(self, path: str, blob: BlobRef) -> bool:
        return mode_of(path, blob.size_bytes, self._settings) == "lfs"

    def _sibling_lfs(self, path: str, blob: BlobRef) -> Json:
        if not self._is_lfs(path, blob):
            return {}
        return {"lfs": {"sha256": blob.digest, "size": blob.size_bytes, "pointerSize": len(pointer(blob))}}


def hub_time(moment: datetime) -> str:
    """A UTC time as the Hub's clients parse it, which know one form."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def pointer(blob: BlobRef) -> bytes:
    """The file that git keeps in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.digest}\nsize {blob.size_bytes}\n".encode()


def git_id(data: bytes) -> str:
    """Git's name for a file with these bytes.

    >>> git_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
