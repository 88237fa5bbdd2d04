"""The body of a commit: lines of JSON, a header first, then files to add and to remove. Read from a spooled file."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from app.hub.paths import IGNORED, check_path, check_size
from app.problems import Refusal, sayable
from app.shelves import Shelves
from app.uploading import keep_bytes
from store.blob_errors import MissingBlob
from store.records import BlobRef
from store.references import is_digest


@dataclass(slots=True)
class Pushed:
    """What a commit changes. Files that came inside it are stored by now; those sent ahead were found."""

    summary: str = ""
    description: str = ""
    parent: str | None = None
    added: dict[str, BlobRef] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    cleared: bool = False  # the folder that is everything


def read_commit(shelves: Shelves, body: BinaryIO) -> Pushed:
    """Take a commit apart. Every name is checked before any file is stored.

    Raises:
        Refusal: a line is no JSON, an operation is not known, a file is not taken or was not sent.
    """
    pushed = Pushed()
    inline: dict[str, bytes] = {}
    for line in body:
        if line.strip():
            key, value = _operation(line)
            _OPERATIONS[key](shelves, pushed, inline, value)
    for path, data in inline.items():
        pushed.added[path] = BlobRef(*keep_bytes(shelves, data))
    return pushed


def _operation(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise _malformed("a line of it is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("value"), dict):
        raise _malformed("a line of it is not an object with key and value")
    key = document.get("key")
    if not isinstance(key, str):
        raise _malformed("an operation has no key that is text")
    if key not in _OPERATIONS:
        raise _malformed(f"{key[:40]!r} is none of {', '.join(_OPERATIONS)}")
    return key, document["value"]


def _malformed(reason: str) -> Refusal:
    return Refusal(422, "invalid-request", f"The commit cannot be read: {reason}.")


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise _malformed(f"an operation has no {name}")
    return text


Inline = dict[str, bytes]


def _header(_: Shelves, pushed: Pushed, __: Inline, value: dict[str, Any]) -> None:
    pushed.summary = _words(value, "summary")[:1024]
    pushed.description = _words(value, "description")[:16_384]
    pushed.parent = _words(value, "parentCommit") or None


def _words(value: dict[str, Any], name: str) -> str:
    """What people said, as any database can keep it."""
    text = value.get(name) or ""
    if not isinstance(text, str):
        raise _malformed(f"its {name} is not text")
    return sayable(text).replace("\x00", "")


def _file(shelves: Shelves, _: Pushed, inline: Inline, value: dict[str, Any]) -> None:
    path = _text(value, "path")
    if path in IGNORED:
        return
    check_path(path)
    content = value.get("content")
    if not isinstance(content, str) or value.get("encoding", "utf-8") not in ("base64", "utf-8"):
        raise _malformed(f"'{path}' has no content in base64")
    in_base64 = value.get("encoding") == "base64"
    try:
        data = base64.b64decode(content, validate=True) if in_base64 else content.encode()
    except ValueError:
        raise _malformed(f"the content of '{path}' is not {'base64' if in_base64 else 'text'}") from None
    check_size(path, len(data), shelves.settings)
    inline[path] = data


def _lfs_file(shelves: Shelves, pushed: Pushed, _: Inline, value: dict[str, Any]) -> None:
    path, oid = _text(value, "path"), _text(value, "oid")
    if path in IGNORED:
        return
    check_path(path)
    if value.get("algo", "sha256") != "sha256" or not is_digest(oid):
        raise _malformed(f"'{path}' is not named by a sha256")
    if not shelves.blobs.renew(oid):
        raise MissingBlob(oid)
    size_bytes = shelves.blobs.size(oid)
    check_size(path, size_bytes, shelves.settings)
    pushed.added[path] = BlobRef(oid, size_bytes)


def _deleted_file(_: Shelves, pushed: Pushed, __: Inline, value: dict[str, Any]) -> None:
    pushed.removed.append(_text(value, "path"))


def _deleted_folder(_: Shelves, pushed: Pushed, __: Inline, value: dict[str, Any]) -> None:
    path = _text(value, "path").strip("/")
    if path not in ("", "."):
        raise Refusal(404, "unknown-file", f"There is no folder {path[:120]!r}: the files lie at the top.")
    pushed.cleared = True


_OPERATIONS: dict[str, Callable[[Shelves, Pushed, Inline, dict[str, Any]], None]] = {
    "header": _header,
    "file": _file,
    "lfsFile": _lfs_file,
    "deletedFile": _deleted_file,
    "deletedFolder": _deleted_folder,
}
