"""What a commit does: a whole adapter becomes the next version, words about it a further commit, the rest a draft.

The new state is the latest version's files, changed by the draft's changes, changed by the commit's. Where that holds
a config and weights, it goes through the checks of every upload. Where it does not, or where only one of the two is new
and does not fit the other, the changes are kept as the draft until the missing part comes.
"""

import json
from dataclasses import dataclass

from app.house import House
from app.hub.cards import card_base, card_form
from app.hub.changes import Pushed
from app.hub.revisions import repository
from app.identity.caller import current
from app.presenting import version_json
from app.problems import Refusal
from app.uploading import CARD_FILE, Upload, publish_blob
from deltas.config import read_config
from deltas.errors import BadTensors
from deltas.header import read_header
from store.errors import RepositoryMoved
from store.hub_records import Changes, Files, Repository, Words, changed, first_id
from store.records import CONFIG_FILE, HEAD_FILE, TOKENIZER_FILE, WEIGHTS_FILE, BlobRef, Version

IDENTITY = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, HEAD_FILE)
"""The files that decide what a version is; the rest says something about it."""
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Committed:
    """The new commit's id, and what its author should know."""

    oid: str
    warnings: tuple[str, ...] = ()


def commit(house: House, namespace: str, name: str, pushed: Pushed) -> Committed:
    """Apply a commit to the newest state of a repository, again if somebody else was faster.

    Raises:
        Refusal, DeltaError, StoreError: nothing has changed.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _commit(house, repository(house, namespace, name), pushed)
        except RepositoryMoved:
            if pushed.parent is not None:
                raise
    return _commit(house, repository(house, namespace, name), pushed)


def _commit(house: House, now: Repository, pushed: Pushed) -> Committed:
    hub = house.shelves.hub
    words = Words(pushed.summary, pushed.description, current().name[:96])
    if pushed.parent not in (None, now.main.oid, now.draft_oid):
        detail = f"The newest commit of {now.ref} is {now.main.oid}, not {str(pushed.parent)[:40]}: fetch it first."
        raise Refusal(412, "repository-moved", detail)
    before = {} if now.latest is None else now.latest.files
    changes = _changes(now, pushed)
    files = changed(before, changes)
    if not changes and now.latest is not None:
        hub.drop_draft(now.namespace, now.name, now.draft_oid)
        return Committed(now.main.oid, ("Nothing differs from the latest version: no commit was made.",))
    missing = [path for path in (CONFIG_FILE, WEIGHTS_FILE) if path not in files]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return _kept(house, now, changes, words, f"it becomes a version once {' and '.join(missing)} {verb} there too")
    if now.latest is not None and not any(path in changes for path in IDENTITY):
        return Committed(_describe(house, now, files, words))
    try:
        version, created = _publish(house, now, files)
    except BadTensors as error:
        if now.latest is None or (CONFIG_FILE in changes) == (WEIGHTS_FILE in changes):
            raise
        other = CONFIG_FILE if WEIGHTS_FILE in changes else WEIGHTS_FILE
        reason = f"it does not fit the {other} of {now.latest.version and now.latest.version.ref}: {error}"
        return _kept(house, now, changes, words, reason)
    hub.drop_draft(now.namespace, now.name, now.draft_oid)
    notes = tuple(version_json(version)["notes"])
    if created:
        hub.remember(version, words)
        return Committed(first_id(version), notes)
    return _there_already(house, repository(house, now.namespace, now.name), version, files, words)


def _changes(now: Repository, pushed: Pushed) -> Changes:
    """The draft's changes and the commit's, as changes to the latest version that really change something."""
    there = now.draft_files
    for path in pushed.removed:
        if path not in there:
            detail = f"{now.ref} has no file {path[:120]!r} to delete. A file with this name doesn't exist."
            raise Refusal(404, "unknown-file", detail, known=list(there))
    before = {} if now.latest is None else now.latest.files
    changes: Changes = dict(now.changes)
    changes |= dict.fromkeys([*pushed.removed, *(there if pushed.cleared else ())])
    changes |= pushed.added
    return {path: blob for path, blob in sorted(changes.items()) if blob != before.get(path)}


def _kept(house: House, now: Repository, changes: Changes, words: Words, reason: str) -> Committed:
    """Keep changes that are no adapter yet. A part that could never be of one is refused at once."""
    shelves = house.shelves
    if (config := changes.get(CONFIG_FILE)) is not None:
        read_config(shelves.blobs.path(config.digest).read_bytes(), shelves.limits)
    if (weights := changes.get(WEIGHTS_FILE)) is not None:
        read_header(shelves.blobs.path(weights.digest), shelves.limits)
    oid = house.shelves.hub.keep_draft(now, changes, words)
    return Committed(oid, (f"Kept as the draft of {now.ref}: {reason}.",))


def _publish(house: House, now: Repository, files: Files) -> tuple[Version, bool]:
    shelves = house.shelves
    config = shelves.blobs.path(files[CONFIG_FILE].digest).read_bytes()
    card = _card(house, files)
    form = card_form(card, house.settings.max_tags)
    declared = card_base(card)
    # The config's own base counts where it is known; where it is a folder of the trainer's, the card may know better.
    if declared and house.registry.base(_declared(config)) is None and house.registry.base(declared) is not None:
        form = form.model_copy(update={"base_model": declared})
    upload = Upload(
        now.namespace,
        now.name,
        config,
        card,
        form,
        tokenizer=_bytes(house, files.get(TOKENIZER_FILE)),
        head=_bytes(house, files.get(HEAD_FILE)),
        others={path: blob for path, blob in files.items() if path not in (*IDENTITY, CARD_FILE)},
    )
    return publish_blob(shelves, upload, files[WEIGHTS_FILE].digest)


def _bytes(house: House, blob: BlobRef | None) -> bytes | None:
    return None if blob is None else house.shelves.blobs.path(blob.digest).read_bytes()


def _there_already(house: House, now: Repository, version: Version, files: Files, words: Words) -> Committed:
    """The adapter is one that the repository has: what else came with it may still be news."""
    assert now.latest is not None
    if now.latest.version is None or now.latest.version.id != version.id:
        text = f"These bytes are {version.ref}, which stays what it is; main is still {_ref(now)}. Move an alias to it."
        return Committed(house.shelves.hub.head(version).oid, (text,))
    kept: Files = {path: now.latest.files[path] for path in IDENTITY if path in now.latest.files}
    files = {**{path: blob for path, blob in files.items() if path not in IDENTITY}, **kept}
    if files == now.latest.files:
        return Committed(now.latest.oid)
    return Committed(_describe(house, now, files, words))


def _describe(house: House, now: Repository, files: Files, words: Words) -> str:
    card = _card(house, files)
    license_ = card_form(card, house.settings.max_tags).license
    return house.shelves.hub.describe(now, files, card, license_, words)


def _card(house: House, files: Files) -> str | None:
    blob: BlobRef | None = files.get(CARD_FILE)
    if blob is None:
        return None
    if blob.size_bytes > house.settings.max_card_bytes:
        limit = house.settings.max_card_bytes
        raise Refusal(413, "body-too-large", f"The card is larger than {limit} bytes.", field="card")
    try:
        return house.shelves.blobs.path(blob.digest).read_text("utf-8")
    except UnicodeDecodeError as error:
        detail = f"{CARD_FILE} is not UTF-8 text (byte {error.start})."
        raise Refusal(422, "invalid-request", detail, field="card") from None


def _declared(config: bytes) -> str:
    """The base that a config names, if it can be read at all: what is wrong with it is said later."""
    try:
        document = json.loads(config)
    except ValueError:
        return ""
    return str(document.get("base_model_name_or_path") or "") if isinstance(document, dict) else ""


def _ref(now: Repository) -> str:
    return now.ref if now.latest is None or now.latest.version is None else now.latest.version.ref
