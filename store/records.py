"""What the registry takes and gives: plain frozen values, detached from any database session.

Digests are bare 64 hex digits everywhere in the store; the prefix ``sha256:`` belongs to references and to JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Item = TypeVar("Item")
Origin = Literal["upload", "merge", "distillation"]

VARYING = "varying"  # the role of a source whose weight is not the same in all modules, kept as its mean

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
HEAD_FILE = "head.safetensors"


class BlobRef(NamedTuple):
    """A stored file: sha256 as hex, and its size."""

    digest: str
    size_bytes: int


class Parent(NamedTuple):
    """What a new version was made from: the id of a published version, its weight, and its part in it."""

    version_id: str
    weight: float
    role: str = "source"


class Sketch(NamedTuple):
    """What stands for a version's updates when near adapters are looked for; ``kind`` says how it was made, and is
    raised with each new way."""

    kind: int
    data: bytes


UNMADE = Sketch(0, b"")
"""In place of a sketch that is still to be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """Everything a version is, before the registry numbers it.

    ``files`` must hold ``adapter_config.json`` and ``adapter_model.safetensors``; every blob is stored already.
    ``config_identity`` is the sha256 (hex) of the config's canonical JSON, however its file is indented, and
    ``tokenizer_identity`` that of ``tokenizer.json``, where the version has one.
    ``target_modules`` are suffixes such as ``q_proj``. ``recipe`` and ``recipe_digest`` come together or not at all.
    ``tags`` are added to the adapter's.
    """

    files: Mapping[str, tuple[str, int]]
    config_identity: str
    tokenizer_identity: str | None = None
    family: str
    base_model: str | None
    base_fingerprint: str | None = None
    base_matched_by: str | None = None
    rank_min: int
    rank_max: int
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_min: float
    alpha_max: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    scale_min: float
    scale_max: float
    use_rslora: bool = False
    target_modules: Sequence[str] = ()
    modules: int
    parameters: int
    dtype: str
    license: str | None = None
    licensing: Mapping[str, Any] | None = None
    card: str | None = None
    tags: Sequence[str] = ()
    mergeable: bool = True
    servable: bool = True
    predictable: bool = False
    head: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    judged: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = "upload"
    lineage: Sequence[tuple[str, float, str]] = ()
    recipe: Mapping[str, Any] | None = None
    recipe_digest: str | None = None
    report: Mapping[str, Any] | None = None
    sketch: Sketch | None = None


@dataclass(frozen=True, slots=True)
class VersionFile:
    """One file of a version."""

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """One thing a version was made from. ``version_id`` is None once that version was deleted by force."""

    ref: str
    weight: float
    role: str
    version_id: str | None


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One version of a lineage; only its ``ref`` is known once it was deleted by force. ``method`` made a merge."""

    ref: str
    version_id: str | None
    digest: str | None
    origin: str | None
    method: str | None


@dataclass(frozen=True, slots=True)
class Link:
    """A version (``child``) was made from another (``parent``), each by pinned reference."""

    child: str
    parent: str
    weight: float
    role: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Versions and how they descend from each other, without cycles."""

    nodes: tuple[Ancestor, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A first origin of a version, as known when it was published.

    ``weight``: the product of the weights on the way to it, summed over all ways: its share, if every merge on the way
    was a weighted sum. ``methods`` and ``roles`` are all that lie on the ways.
    """

    ref: str
    weight: float
    methods: tuple[str, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Revocation:
    """Why a version must not be used any more. ``ancestor``: the version that was revoked, itself or an ancestor."""

    ancestor: str
    reason: str
    revoked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An immutable published version; ``aliases``, ``tags``, ``revoked`` and ``base_known`` are as of the moment it was
    read. ``licensing``: of one that was made from others, their licences and what follows."""

    id: str
    namespace: str
    name: str
    number: int
    digest: str
    created_at: datetime
    family: str
    base_model: str | None
    base_known: bool
    base_fingerprint: str | None
    base_matched_by: str | None
    rank_min: int
    rank_max: int
    rank_pattern: dict[str, int]
    alpha_min: float
    alpha_max: float
    alpha_pattern: dict[str, float]
    scale_min: float
    scale_max: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    modules: int
    parameters: int
    dtype: str
    size_bytes: int
    files: tuple[VersionFile, ...]
    license: str | None
    licensing: dict[str, Any] | None
    card: str | None
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    mergeable: bool
    servable: bool
    predictable: bool
    head: dict[str, Any] | None
    notes: tuple[str, ...]
    metrics: dict[str, Any]
    origin: Origin
    sources: tuple[Source, ...]
    leaves: tuple[Leaf, ...]
    recipe: dict[str, Any] | None
    recipe_digest: str | None
    revoked: tuple[Revocation, ...] = ()

    @property
    def ref(self) -> str:
        """The pinned reference, ``namespace/name@3``."""
        return f"{self.namespace}/{self.name}@{self.number}"

    def file(self, name: str) -> VersionFile | None:
        """The file of this name, if the version has one."""
        return next((file for file in self.files if file.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry:
    """One named adapter as lists show it. ``versions`` counts those that exist; ``aliases`` maps to numbers."""

    id: str
    namespace: str
    name: str
    created_at: datetime
    versions: int
    aliases: dict[str, int]
    tags: tuple[str, ...]
    latest: Version


@dataclass(frozen=True, slots=True)
class Base:
    """A base model the service knows; ``modules`` maps module name to (out_features, in_features)."""

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A slice of a list; ``next_cursor`` is None on the last page."""

    items: list[Item]
    next_cursor: str | None


def version_digest(new: NewVersion) -> str:
    """sha256 (hex) over the config's content, the weights' bytes and, if there is one, the tokenizer's content and the
    head's bytes: what a version *is*, without its card.

    The same adapter is the same version whether its config came as a file or as JSON in a request.
    """
    identity = {CONFIG_FILE: new.config_identity, WEIGHTS_FILE: new.files[WEIGHTS_FILE][0]}
    if new.tokenizer_identity is not None:
        identity[TOKENIZER_FILE] = new.tokenizer_identity
    if HEAD_FILE in new.files:
        identity[HEAD_FILE] = new.files[HEAD_FILE][0]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
