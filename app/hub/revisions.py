"""From `namespace/name` and a revision to a commit, or to the error that the Hub's clients know."""

import difflib
import re

from app.house import House
from app.problems import Refusal
from store.errors import BadReference, UnknownReference
from store.hub_records import Commit, Repository, first_id
from store.records import BlobRef

MAIN = frozenset({"main", "latest", "HEAD", "refs/heads/main"})
DRAFT = "draft"
_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})")


def repository(house: House, namespace: str, name: str) -> Repository:
    """The repository. Raises Refusal `unknown-repository` (RepositoryNotFoundError in the client)."""
    try:
        return house.shelves.hub.repository(namespace, name)
    except UnknownReference as error:
        raise unknown_repository(f"{namespace}/{name}", error.near) from None


def unknown_repository(ref: str, near: list[str]) -> Refusal:
    """There is no such repository, here or for whoever asks."""
    hint = f"; did you mean {', '.join(near)}?" if near else "."
    return Refusal(404, "unknown-repository", f"There is no adapter {ref[:120]!r}{hint}", reference=ref, near=near)


def resolve(house: House, namespace: str, name: str, revision: str) -> Commit:
    """The commit that a revision means at this moment.

    `main` is the latest version; `v3` version 3; an alias what it points to; 40 hex digits a commit; 64 a version by
    its digest; `draft` what is not a version yet.

    Raises:
        Refusal: `unknown-repository`, or `unknown-revision` (RevisionNotFoundError in the client).
    """
    found = repository(house, namespace, name)
    commit = _meant(house, found, revision.removeprefix("sha256:"))
    if commit is None:
        raise _unknown_revision(house, found, revision)
    return commit


def is_fixed(revision: str) -> bool:
    """Whether a revision means what it says, so that no alias of that name is ever looked at."""
    return revision in MAIN or any(pattern.fullmatch(revision) for pattern in (_OID, _NUMBER))


def _meant(house: House, found: Repository, revision: str) -> Commit | None:
    if revision in MAIN:
        return found.main
    if _OID.fullmatch(revision):
        if found.draft is not None and found.draft.oid == revision:
            return found.draft
        return house.shelves.hub.find(found.namespace, found.name, revision)
    number = _NUMBER.fullmatch(revision.removeprefix("refs/tags/"))
    selector = f"@{number.group(1)}" if number else f":{revision.removeprefix('refs/tags/')}"
    try:
        return house.shelves.hub.head(house.registry.resolve(found.ref + selector))
    except (BadReference, UnknownReference):
        return found.draft if revision in (DRAFT, f"refs/heads/{DRAFT}") else None


def _unknown_revision(house: House, found: Repository, revision: str) -> Refusal:
    known = ["main"]
    if found.latest is not None:
        entry = house.registry.get_adapter(found.namespace, found.name)
        known += [f"v{entry.latest.number}", *entry.aliases]
    known = list(dict.fromkeys([*difflib.get_close_matches(revision, known), *known]))[:8]
    detail = f"{found.ref} has no revision {revision[:120]!r}; it has {', '.join(known)}."
    return Refusal(404, "unknown-revision", detail, reference=found.ref, known=known)


def file_of(commit: Commit, ref: str, path: str) -> BlobRef:
    """One file of a commit. Raises Refusal `unknown-file` (EntryNotFoundError in the client)."""
    blob = commit.files.get(path)
    if blob is None:
        detail = f"{ref} has no file {path[:120]!r}; it has {', '.join(commit.files) or 'none yet'}."
        raise Refusal(404, "unknown-file", detail, known=list(commit.files), commit=commit.oid)
    return blob


def refs(house: House, found: Repository) -> dict[str, list[dict[str, str]]]:
    """Branches and tags: `main`, the draft beside it, every version and every alias that is no version's number."""
    branches = [_ref("main", "heads", found.main.oid)]
    if found.draft is not None and found.latest is not None:
        branches.append(_ref(DRAFT, "heads", found.draft.oid))
    tags: list[dict[str, str]] = []
    if found.latest is not None:
        newest: dict[int, str] = {}
        for commit in house.shelves.hub.history(found.namespace, found.name):
            if commit.version is not None:
                newest.setdefault(commit.version.number, commit.oid)
        tags = [_ref(f"v{number}", "tags", oid) for number, oid in newest.items()]
        aliases = house.registry.get_adapter(found.namespace, found.name).aliases
        shown = {alias: number for alias, number in aliases.items() if number in newest and not is_fixed(alias)}
        tags += [_ref(alias, "tags", newest[number]) for alias, number in shown.items()]
    return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}


def _ref(name: str, kind: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}


def published(commit: Commit) -> bool:
    """Whether this is a version as it was published, with nothing said about it since."""
    return commit.version is not None and commit.oid == first_id(commit.version)
