"""Classification heads as they are uploaded: checked against the base model, and named, before they are kept."""

from pathlib import Path
from typing import Any, NamedTuple

from app.facts import BaseMatch, head_json
from app.problems import Refusal
from app.shelves import Shelves
from deltas.adapter import Adapter
from deltas.header import read_header
from merging.recycle.head import built_in_head, class_names, head_bytes, read_head_file
from store.records import HEAD_FILE, Version


class CheckedHead(NamedTuple):
    """A head file to keep, and what a version shows of it."""

    data: bytes
    shown: dict[str, Any]


def checked_head(
    shelves: Shelves, ref: str, adapter: Adapter, match: BaseMatch, data: bytes | None, classes: list[str]
) -> CheckedHead | None:
    """The head file of an upload; None where there is none to keep beside the adapter.

    Names that come with the request are written into the file, which is the one place that says them; a head that is
    among the adapter's own tensors gets a file of its own for that.

    Raises:
        BadFile, HeadMismatch, HeadMissing: nothing that could be the head of this adapter.
    """
    if data is None and not classes:
        return None
    widths = () if match.width is None else (match.width, 2 * match.width)
    if data is None:
        head, named = built_in_head(ref, adapter, match.name, widths), tuple[str, ...]()
    else:
        with shelves.blobs.stage() as staging:
            staging.write(data)
            read_header(staging.path, shelves.limits)
            head, named = read_head_file(ref, staging.path, match.name, widths)
    if classes:
        named = class_names(ref, classes, len(head.weight))
    if classes or data is None:
        data = head_bytes(head, named)
    return CheckedHead(data, head_json(head.weight.shape[0], head.weight.shape[1], named, HEAD_FILE))


def stored_head(shelves: Shelves, digest: str) -> bytes:
    """The bytes of a head that was uploaded before, by digest. Raises MissingBlob, Refusal."""
    bare, limit = digest.removeprefix("sha256:"), shelves.settings.max_head_bytes
    if shelves.blobs.size(bare) > limit:
        detail = f"The head is larger than the {limit} bytes that are accepted."
        raise Refusal(413, "body-too-large", detail, field="head", limit_bytes=limit)
    return shelves.blobs.path(bare).read_bytes()


def head_path(shelves: Shelves, version: Version) -> Path | None:
    """The version's head file; None where its head is among its own tensors."""
    file = version.file(HEAD_FILE)
    return None if file is None else shelves.blobs.path(file.digest)
