"""Sketches of adapters: made when a version is published, made up for later where that was not possible, searched.

The search passes all sketches of the base model once; the best few are then compared exactly.
"""

import logging
from collections.abc import Iterator
from typing import Any

from app.problems import Refusal
from app.shelves import Shelves
from deltas.adapter import Adapter
from deltas.errors import DeltaError
from merging.compare import DUPLICATE, Resemblance, resemblances
from merging.sketch import FORMAT, SIZE, SKETCH_BYTES, STD_ERROR, nearest, sketch
from store.blob_errors import MissingBlob
from store.records import Sketch, Version

log = logging.getLogger(__name__)

# Half precision rounds two factorisations of one update apart by about this much.
HALF_DUPLICATE = 1 - 1e-5
CANDIDATES = 2  # sketches compared exactly, for each adapter asked for: the estimate may order close ones wrongly


def sketch_of(adapter: Adapter) -> Sketch | None:
    """The adapter's sketch; None where it has none, or cannot be read as factors right now."""
    if adapter.obstacles:
        return None
    try:
        return Sketch(FORMAT, sketch(adapter))
    except DeltaError as error:
        log.info("no sketch: %s", error)
        return None


def sketch_one_missing(shelves: Shelves) -> bool:
    """Make the sketch of one published version that has none yet; whether there was one. Empty: it cannot be made."""
    missing = shelves.sketches.missing(FORMAT, 1)
    for version in missing:
        try:
            made = sketch_of(shelves.open_adapter(version))
        except (DeltaError, MissingBlob) as error:
            log.warning("%s has no sketch: %s", version.ref, error)
            made = None
        shelves.sketches.put(version.id, FORMAT, made.data if made else b"")
    return bool(missing)


def nearest_adapters(shelves: Shelves, version: Version, limit: int) -> dict[str, Any]:
    """The versions on the same base model whose updates are most alike (or opposite), compared exactly.

    Raises:
        Refusal: the version has no sketch.
    """
    asked = shelves.sketches.get(version.id, FORMAT)
    if asked is None:
        made = sketch_of(shelves.open_adapter(version))
        asked = made.data if made else b""
        shelves.sketches.put(version.id, FORMAT, asked)
    if not asked:
        detail = f"{version.ref} cannot be compared: its updates cannot be read as LoRA factors."
        raise Refusal(422, "not-comparable", detail)
    passed = 0

    def batches() -> Iterator[tuple[list[str], bytes]]:
        nonlocal passed
        for ids, data in shelves.sketches.of_base(version.base_model, FORMAT):
            passed += len(ids)
            yield ids, data

    estimates = {near.name: near.cosine for near in nearest(asked, batches(), CANDIDATES * limit + 1)}
    estimates.pop(version.id, None)
    others = shelves.sketches.versions(list(estimates))
    exact = _compared_exactly(shelves, version, list(others.values()))
    items = [_item(version, other, exact.get(name), estimates[name]) for name, other in others.items()]
    items.sort(key=lambda item: (-round(abs(item["cosine"]), 9), item["ref"]))
    return {
        "ref": version.ref,
        "base_model": version.base_model,
        "searched": passed - 1,
        "sketch": {"numbers": SIZE, "bytes": SKETCH_BYTES, "standard_error": STD_ERROR},
        "items": items[:limit],
    }


def _compared_exactly(shelves: Shelves, version: Version, others: list[Version]) -> dict[str, Resemblance]:
    """By version id. Adapters that would have to be converted first, which may take minutes, are left out."""
    mine = _plain(shelves, version)
    opened = {other.id: adapter for other in others if (adapter := _plain(shelves, other)) is not None}
    if mine is None:
        return {}
    return dict(zip(opened, resemblances(mine, list(opened.values())), strict=True))


def _plain(shelves: Shelves, version: Version) -> Adapter | None:
    try:
        adapter = shelves.open_adapter(version)
    except (DeltaError, MissingBlob) as error:
        log.warning("%s cannot be read: %s", version.ref, error)
        return None
    return None if adapter.obstacles or adapter.conversion else adapter


def _item(version: Version, other: Version, exact: Resemblance | None, estimate: float) -> dict[str, Any]:
    half = any("16" in one.dtype for one in (version, other))
    cosine = estimate if exact is None else exact.cosine
    return {
        "ref": other.ref,
        "cosine": cosine,
        "exact": exact is not None,
        "estimate": estimate,
        "factor": exact and exact.factor,
        "duplicate": abs(cosine) >= (HALF_DUPLICATE if half else DUPLICATE),
        "same_bytes": other.digest == version.digest,
    }
