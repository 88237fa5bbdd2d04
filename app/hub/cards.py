"""The front matter of a README.md: what the Hub calls a card's metadata."""

import re
from typing import Any

import yaml

from app.problems import plain_json
from app.schemas import TAG, VersionForm

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class BadFrontMatter(ValueError):
    """The block between the two lines of --- is no YAML mapping."""


def front_matter(card: str) -> dict[str, Any]:
    """The metadata at the top of a card; empty where there is none.

    Raises:
        BadFrontMatter: it is no YAML mapping, or repeats itself by anchors.
    """
    found = _FRONT.match(card)
    if found is None:
        return {}
    text = found.group(1)
    try:
        # An anchor may stand for a document that grows beyond all memory when it is written out.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise BadFrontMatter("anchors and aliases are not read here")
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, BadFrontMatter):
            raise
        raise BadFrontMatter(" ".join(str(error).split())[:300] or "it cannot be parsed") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadFrontMatter("it is not a mapping of names to values")
    plain: dict[str, Any] = plain_json(document)
    return plain


def lenient_front_matter(card: str | None) -> dict[str, Any]:
    """The metadata, or nothing where it cannot be read: a card may say what it likes."""
    try:
        return front_matter(card or "")
    except BadFrontMatter:
        return {}


def card_form(card: str | None, max_tags: int) -> VersionForm:
    """What a card declares of what an upload's form can say, its base model apart."""
    metadata = lenient_front_matter(card)
    license_ = metadata.get("license")
    tags = metadata.get("tags")
    kept = [tag for tag in tags if isinstance(tag, str) and re.match(TAG, tag)] if isinstance(tags, list) else []
    return VersionForm(
        license=license_[:255] if isinstance(license_, str) else None, tags=list(dict.fromkeys(kept))[:max_tags]
    )


def card_base(card: str | None) -> str | None:
    """The base model that a card names, if it names one."""
    base = lenient_front_matter(card).get("base_model")
    if isinstance(base, list) and len(base) == 1:
        base = base[0]
    return base if isinstance(base, str) and base else None
