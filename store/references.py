"""References to adapters and versions, and the names they are made of.

``namespace/name`` (the latest version), ``namespace/name@3``, ``namespace/name:alias``, ``sha256:<64 hex>``
(a version's digest). What the service answers is always pinned: ``namespace/name@3``.
"""

import re
from dataclasses import dataclass

from store.errors import BadReference, InvalidName

LATEST = "latest"
"""Reads like an alias, always means the version with the highest number, and cannot be set."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
"""Of namespaces, names, aliases and files; none holds two dots in a row."""

_NAME = re.compile(NAME_PATTERN)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME_RULE = "use 1 to 96 of the characters A-Z a-z 0-9 . _ - , starting with a letter or digit, without '..'"
_TAG_RULE = "use 1 to 64 printable characters without a comma, not starting or ending with a space"
_ALIAS_RULE = f"{_NAME_RULE}, not a bare number and not '{LATEST}'"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: either ``digest`` alone, or namespace and name with at most one of version, alias."""

    namespace: str = ""
    name: str = ""
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    @property
    def adapter(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def __str__(self) -> str:
        if self.digest is not None:
            return f"sha256:{self.digest}"
        if self.version is not None:
            return f"{self.adapter}@{self.version}"
        return self.adapter if self.alias is None else f"{self.adapter}:{self.alias}"


def is_name(text: str) -> bool:
    """Whether the text may be a namespace, a name or a file name."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def is_digest(text: str) -> bool:
    """Whether the text is a bare sha256: 64 lower-case hex digits without a prefix."""
    return _DIGEST.fullmatch(text) is not None


def validate_name(value: str, kind: str = "name") -> str:
    """The name itself, if it is allowed. Raises InvalidName; ``kind`` is the word used in its sentence."""
    if not is_name(value):
        raise InvalidName(kind, value, _NAME_RULE)
    return value


def validate_alias(value: str) -> str:
    """The alias itself, if it is a name and can be told from a version number and from ``latest``."""
    if not is_name(value) or value.isdigit() or value == LATEST:
        raise InvalidName("alias", value, _ALIAS_RULE)
    return value


def validate_tag(value: str) -> str:
    """The tag itself, if it is short, printable and free of commas. Raises InvalidName."""
    if not 1 <= len(value) <= 64 or not value.isprintable() or "," in value or value != value.strip():
        raise InvalidName("tag", value, _TAG_RULE)
    return value


def parse_reference(text: str) -> Reference:
    """Take a reference apart. Raises BadReference with the part that does not fit.

    >>> parse_reference("team/spam@3")
    Reference(namespace='team', name='spam', version=3, alias=None, digest=None)
    """
    if text.startswith("sha256:"):
        digest = text.removeprefix("sha256:")
        if not is_digest(digest):
            raise BadReference(text, "a digest has 64 lower-case hex digits")
        return Reference(digest=digest)
    namespace, slash, rest = text.partition("/")
    if not slash:
        raise BadReference(text, "the namespace is missing")
    name, mark, selector = rest, "", ""
    for candidate in "@:":
        if candidate in rest:
            name, mark, selector = rest.partition(candidate)
            break
    if not is_name(namespace):
        raise BadReference(text, "the namespace has characters that are not allowed")
    if not is_name(name):
        raise BadReference(text, "the name has characters that are not allowed")
    if mark == "@":
        if not _NUMBER.fullmatch(selector):
            raise BadReference(text, "a version is a number from 1")
        return Reference(namespace, name, version=int(selector))
    if mark == ":":
        if selector == LATEST:
            return Reference(namespace, name)
        if not is_name(selector):
            raise BadReference(text, "the alias has characters that are not allowed")
        return Reference(namespace, name, alias=selector)
    return Reference(namespace, name)
