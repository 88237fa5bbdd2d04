"""The rows of a new version, written within the transaction that numbers it."""

import math
from dataclasses import astuple

from sqlalchemy import select
from sqlalchemy.orm import Session
from ulid import ULID

from store.blobs import Blobs
from store.errors import InvalidName, UnknownParent
from store.lineage import leaves, read_lineage
from store.locks import hold_blobs
from store.models import (
    AdapterRow,
    LineageRow,
    RecipeRow,
    SketchRow,
    VersionFileRow,
    VersionRow,
    VersionTargetRow,
    now,
)
from store.records import TOKENIZER_FILE, UNMADE, NewVersion, version_digest
from store.revoking import inherit_marks

LONGEST_INDEXED = 512


def add_version(session: Session, blobs: Blobs, adapter: AdapterRow, new: NewVersion) -> VersionRow:
    """Add the version to the session under ``adapter.last_number``.

    A file's size is the blob's own. Raises MissingBlob, UnknownParent, InvalidName; ValueError for half a recipe, for a
    tokenizer without its identity or for a number that is not finite, which are mistakes of the caller.
    """
    if (new.recipe is None) != (new.recipe_digest is None):
        raise ValueError("recipe and recipe_digest come together or not at all")
    if (new.tokenizer_identity is None) != (TOKENIZER_FILE not in new.files):
        raise ValueError("tokenizer.json and tokenizer_identity come together or not at all")
    numbers = (new.alpha_min, new.alpha_max, new.scale_min, new.scale_max, *(link[1] for link in new.lineage))
    if not all(map(math.isfinite, numbers)):
        raise ValueError("alpha, scale and lineage weights must be finite")
    _check_texts(new)
    hold_blobs(session, [digest for digest, _ in new.files.values()])
    files = [
        VersionFileRow(filename=filename, digest=digest, size_bytes=blobs.size(digest))
        for filename, (digest, _) in sorted(new.files.items())
    ]
    if new.recipe is not None and session.get(RecipeRow, new.recipe_digest) is None:
        session.add(RecipeRow(digest=new.recipe_digest, recipe=dict(new.recipe), created_at=now()))
        session.flush()
    row = VersionRow(
        id=str(ULID()),
        adapter=adapter,
        number=adapter.last_number,
        digest=version_digest(new),
        created_at=now(),
        family=new.family,
        base_model=new.base_model,
        base_fingerprint=new.base_fingerprint,
        base_matched_by=new.base_matched_by,
        rank_min=new.rank_min,
        rank_max=new.rank_max,
        rank_pattern=dict(new.rank_pattern),
        alpha_min=new.alpha_min,
        alpha_max=new.alpha_max,
        alpha_pattern=dict(new.alpha_pattern),
        scale_min=new.scale_min,
        scale_max=new.scale_max,
        use_rslora=new.use_rslora,
        modules=new.modules,
        parameters=new.parameters,
        dtype=new.dtype,
        size_bytes=sum(file.size_bytes for file in files),
        license=new.license,
        licensing=None if new.licensing is None else dict(new.licensing),
        card=new.card,
        mergeable=new.mergeable,
        servable=new.servable,
        notes=list(new.notes),
        judged=new.judged,
        predictable=new.predictable,
        head=None if new.head is None else dict(new.head),
        metrics=dict(new.metrics),
        origin=new.origin,
        recipe_digest=new.recipe_digest,
        report=None if new.report is None else dict(new.report),
        files=files,
        targets=[VersionTargetRow(suffix=suffix) for suffix in sorted(set(new.target_modules))],
        parents=[
            LineageRow(
                position=position,
                parent_id=parent_id,
                parent_ref=_pinned(session, parent_id),
                weight=weight,
                role=role,
            )
            for position, (parent_id, weight, role) in enumerate(new.lineage)
        ],
    )
    session.add(row)
    session.flush()
    if new.lineage:
        inherit_marks(session, row)
        ref = f"{adapter.namespace}/{adapter.name}@{row.number}"
        row.leaves = [list(astuple(leaf)) for leaf in leaves(read_lineage(session, [row.id]), ref)]
    if new.sketch is not None or new.mergeable:
        kind, data = new.sketch or UNMADE
        session.add(SketchRow(version_id=row.id, kind=kind, data=data))
    return row


def _check_texts(new: NewVersion) -> None:
    """What PostgreSQL would refuse is refused everywhere: NUL, and more than an index takes where there is one."""
    indexed = [("base model", new.base_model), *(("target module", suffix) for suffix in new.target_modules)]
    for kind, value in (*indexed, ("licence", new.license), ("card", new.card)):
        if value is not None and "\x00" in value:
            raise InvalidName(kind, value, "it must not hold the character NUL")
    for kind, value in indexed:
        if value is not None and len(value) > LONGEST_INDEXED:
            raise InvalidName(kind, value, f"use at most {LONGEST_INDEXED} characters")


def _pinned(session: Session, version_id: str) -> str:
    """The source's reference. Its row is held: who deletes it waits, and then sees that it has a child."""
    found = session.execute(
        select(AdapterRow.namespace, AdapterRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
        .where(VersionRow.id == version_id)
        .with_for_update(read=True, key_share=True, of=VersionRow)
    ).first()
    if found is None:
        raise UnknownParent(version_id)
    return f"{found.namespace}/{found.name}@{found.number}"
