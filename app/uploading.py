"""Uploads: stage, check everything, and only then publish.

The order keeps a refused or broken upload from leaving anything: bytes are staged (a staged file has no name that
anybody can ask for), the adapter is checked on the staged file, blobs are committed, and the row comes last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from app.facts import BaseMatch, content_facts, match_base, use_notes
from app.heads import checked_head
from app.licences import card_licence
from app.observing import metrics
from app.observing.tracing import stage
from app.problems import Refusal
from app.schemas import VersionForm
from app.shelves import Shelves
from app.sketching import sketch_of
from app.token_notes import token_notes
from app.vision import know_vision_base
from deltas.adapter import Adapter
from deltas.config import read_config
from deltas.header import read_header
from deltas.spellings import Respelling, respelt_config, written_config
from deltas.tokenizer import Tokenizer
from store.blobs import Staging
from store.claims import claim
from store.records import CONFIG_FILE, HEAD_FILE, TOKENIZER_FILE, WEIGHTS_FILE, BlobRef, NewVersion, Version
from store.references import validate_name, validate_tag

CARD_FILE = "README.md"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """All of an upload but its weights."""

    namespace: str
    name: str
    config: bytes | None  # None: to be written from the weights, where their spelling allows it
    card: str | None = None
    form: VersionForm = field(default_factory=VersionForm)
    tokenizer: bytes | None = None
    head: bytes | None = None
    others: Mapping[str, BlobRef] = field(default_factory=dict)  # files that compute nothing, stored already


def check_names(namespace: str, name: str) -> None:
    """Raises InvalidName before any byte of a body is read."""
    validate_name(namespace, "namespace")
    validate_name(name, "name")


def config_bytes(config: dict[str, Any]) -> bytes:
    """The config as PEFT's save_pretrained writes it, so that both ways of uploading give the same version."""
    return json.dumps(config, indent=2, sort_keys=True).encode()


def tokenizer_bytes(tokenizer: dict[str, Any] | str | None) -> bytes | None:
    """The tokenizer of a JSON body as its file: text as it came, an object written out."""
    if tokenizer is None:
        return None
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer, ensure_ascii=False, indent=2)
    return text.encode(errors="surrogatepass")  # which reading then refuses as no text


def keep_blob(shelves: Shelves, staging: Staging, expected: str) -> str:
    """Publish staged bytes under the digest that was announced, if they are a safetensors file at all.

    Raises:
        DigestMismatch, BadFile, QuotaExceeded, StorageFull: nothing is kept.
    """
    if staging.digest == expected:
        read_header(staging.path, shelves.limits)
        claim_bytes(shelves, expected, staging.size)
    return staging.commit(expected)


def claim_bytes(shelves: Shelves, digest: str, size_bytes: int) -> None:
    """Let the caller send or keep bytes that no version has yet: they count against its quota for as long as they can
    lie here so. Raises QuotaExceeded."""
    lifetime_s = max(shelves.settings.upload_expiry_s, shelves.settings.orphan_max_age_s)
    claim(shelves.database, shelves.blobs, digest, size_bytes, lifetime_s)


def publish_file(shelves: Shelves, upload: Upload, weights: BinaryIO) -> tuple[Version, bool]:
    """Publish an upload whose weights come as an open file. Returns the version and whether it is new."""
    with shelves.blobs.stage() as staging:
        with stage("upload stage"):
            _copy(weights, staging, shelves.settings.max_upload_bytes)
        with stage("upload check"):
            upload, new = _check(shelves, upload, staging.path)
        size = staging.size
        claim_bytes(shelves, staging.digest, size)
        return _publish(shelves, upload, new, (staging.commit(), size))


def _copy(weights: BinaryIO, staging: Staging, most: int) -> None:
    while piece := weights.read(_CHUNK_BYTES):
        staging.write(piece)
        if staging.size > most:  # what is left of the body's limit is for other parts
            raise _too_large("weights", most)


def _too_large(part: str, limit: int) -> Refusal:
    detail = f"Part '{part}' is larger than the {limit} bytes that are accepted."
    return Refusal(413, "body-too-large", detail, field=part, limit_bytes=limit)


def publish_blob(shelves: Shelves, upload: Upload, digest: str) -> tuple[Version, bool]:
    """Publish an upload whose weights were stored before, by digest (hex).

    Raises:
        MissingBlob: they were not, or garbage collection took them since.
    """
    shelves.blobs.renew(digest)  # whatever is deleted meanwhile, the file is not
    path = shelves.blobs.path(digest)
    with stage("upload check"):
        upload, new = _check(shelves, upload, path)
    return _publish(shelves, upload, new, (digest, shelves.blobs.size(digest)))


def _check(shelves: Shelves, upload: Upload, weights: Path) -> tuple[Upload, dict[str, Any]]:
    """Everything that can be wrong with an adapter. Returns the upload as it is kept, and the fields of NewVersion.

    A base model that the upload declares replaces the one in the config, which often is a folder of the trainer's: the
    kept config names a base that others can load, and declaring another base makes another version.
    """
    settings = shelves.settings
    if len(upload.form.tags) > settings.max_tags:
        raise Refusal(
            422, "too-many-tags", f"{len(upload.form.tags)} tags were given; at most {settings.max_tags} are kept."
        )
    for tag in upload.form.tags:
        validate_tag(tag)
    if upload.config is not None and not upload.config.strip():
        raise Refusal(422, "bad-config", "adapter_config.json is empty (0 bytes).", field="config")
    if upload.card is not None and len(upload.card.encode()) > settings.max_card_bytes:
        raise Refusal(413, "body-too-large", f"The card is larger than {settings.max_card_bytes} bytes.", field="card")
    given = upload.config if upload.config is not None else _written(shelves, upload, weights)
    respelt = respelt_config(read_config(given, shelves.limits).raw, read_header(weights, shelves.limits))
    given = given if respelt is None else config_bytes(respelt)
    upload = replace(upload, config=given)
    tokenizer = None if upload.tokenizer is None else Tokenizer(upload.tokenizer, shelves.limits)
    if tokenizer is not None:
        tokenizer.check()
    adapter = Adapter.open(given, weights, limits=shelves.limits, tokenizer=tokenizer)
    declared = upload.form.base_model
    if declared and declared != adapter.config.base_model:
        given = config_bytes({**adapter.config.raw, "base_model_name_or_path": declared})
        upload = replace(upload, config=given)
        adapter = Adapter.open(given, weights, limits=shelves.limits, tokenizer=tokenizer)
    know_vision_base(shelves, adapter.config.base_model)
    match = match_base(shelves.registry, adapter)
    adapter.check_finite()
    adapter = shelves.with_base(adapter, match.name if match.fingerprint else None)
    adapter.check_copies()
    facts = content_facts(adapter, match.linears, match.modality)
    ref = f"{upload.namespace}/{upload.name}"
    head = checked_head(shelves, ref, adapter, match, upload.head, upload.form.classes)
    if head is not None:
        upload = replace(upload, head=head.data)
        facts["head"] = head.shown
    return upload, {
        **facts,
        "base_model": match.name,
        "base_fingerprint": match.fingerprint,
        "base_matched_by": match.matched_by,
        "notes": all_notes(shelves, adapter, match),
        "license": upload.form.license or card_licence(upload.card),
        "tags": upload.form.tags,
        "card": upload.card,
        # A conversion may take minutes: its sketch is made later, by an idle worker.
        "sketch": None if adapter.conversion else sketch_of(adapter),
    }


def _written(shelves: Shelves, upload: Upload, weights: Path) -> bytes:
    """The config of weights that came without one. Raises BadConfig where their spelling does not say enough."""
    base = shelves.registry.base(upload.form.base_model) if upload.form.base_model else None
    header = read_header(weights, shelves.limits)
    return config_bytes(written_config(weights, header, upload.form.base_model, base.modules if base else None))


def all_notes(shelves: Shelves, adapter: Adapter, match: BaseMatch) -> list[str]:
    """Everything that an uploaded version's owner should know, a sentence each."""
    return [
        *spelling_notes(adapter),
        *use_notes(adapter, match.linears, match.modality),
        *(token_notes(adapter, shelves.base_tokenizer(match.name)) if adapter.tokenizer else ()),
        *match.notes,
    ]


def spelling_notes(adapter: Adapter) -> list[str]:
    """How the weights of an adapter in another trainer's spelling are spelt."""
    respelling = Respelling.of(adapter.config.raw)
    if respelling is None:
        return []
    config = (
        "an adapter_config.json that was written for them, with ranks from their shapes and alphas from their file"
        if respelling.layout.bare
        else "their adapter_config.json, in which the modules were filled in"
    )
    return [f"Its weights are in {respelling.layout.said} spelling. They are kept as they are, beside {config}."]


def _publish(shelves: Shelves, upload: Upload, new: dict[str, Any], weights: tuple[str, int]) -> tuple[Version, bool]:
    assert upload.config is not None  # _check wrote it
    files = {**upload.others, WEIGHTS_FILE: weights, CONFIG_FILE: keep_bytes(shelves, upload.config)}
    if upload.card is not None:
        files[CARD_FILE] = keep_bytes(shelves, upload.card.encode())
    if upload.tokenizer is not None:
        files[TOKENIZER_FILE] = keep_bytes(shelves, upload.tokenizer)
    if upload.head is not None:
        files[HEAD_FILE] = keep_bytes(shelves, upload.head)
    with stage("upload publish"):
        version, created = shelves.registry.publish(upload.namespace, upload.name, NewVersion(**new, files=files))
    if created:
        metrics.upload_bytes.inc(weights[1])
    return version, created


def keep_bytes(shelves: Shelves, data: bytes) -> tuple[str, int]:
    """Store a small blob; (digest, size in bytes)."""
    with shelves.blobs.stage() as staging:
        staging.write(data)
        claim_bytes(shelves, staging.digest, len(data))
        return staging.commit(), len(data)
