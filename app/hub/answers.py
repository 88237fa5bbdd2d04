"""How the Hub's clients are told: error codes and sentences in headers, warnings that they print."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

CODES = {
    "unknown-repository": "RepoNotFound",
    "unknown-reference": "RepoNotFound",
    "unknown-revision": "RevisionNotFound",
    "unknown-file": "EntryNotFound",
}
_DOWNLOAD = re.compile(r"/[^/]+(?:/[^/]+)?/resolve/")
_PLACES = re.compile(r"/api/|/xet/|/[^/]+(?:/[^/]+)?/resolve/|/[^/]+/[^/]+\.git/")


def is_hub(path: str) -> bool:
    """Whether an address belongs to the Hub's protocol."""
    return _PLACES.match(path) is not None


def error_headers(path: str, slug: str, detail: str, members: Mapping[str, Any]) -> dict[str, str]:
    """What the client makes its exception of. A sentence that no header can hold stays in the body."""
    headers = {"x-error-code": CODES[slug]} if slug in CODES else {}
    if slug == "forbidden" and _DOWNLOAD.match(path):
        # Any other 403 the client takes for a lost connection, and says so instead of what is missing.
        headers["x-error-code"] = "GatedRepo"
    said = " ".join(detail.split())
    if said.isascii() and said.isprintable():
        headers["x-error-message"] = said
    if isinstance(commit := members.get("commit"), str):
        headers["x-repo-commit"] = commit  # lets the client remember that this commit has no such file
    return headers


def commit_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Sentences that the client prints, once each."""
    said = " ".join(" ".join(warnings).replace(";", ",").split())
    if not said:
        return {}
    text = "".join(one if one.isascii() and one.isprintable() else "?" for one in said)
    topic = hashlib.sha256(text.encode()).hexdigest()[:16]  # the client prints one warning a topic
    return {"x-hf-warning": f"{topic}; {text}"}
