"""The front matter of a README.md: what model hubs call a card's metadata. Anybody writes it."""

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from app.problems import plain_json

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_UNREADABLE = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""PyYAML raises whatever a value that is not of its declared kind leads it to (`!!int ""`: IndexError)."""


class BadFrontMatter(ValueError):
    """The block between the two lines of --- is no YAML mapping."""


def front_matter(card: str) -> dict[str, Any]:
    """The metadata at the top of a card, as JSON can say it; empty where there is none.

    Raises:
        BadFrontMatter: it is no YAML mapping, or repeats itself by anchors.
    """
    text = _block(card)
    if text is None:
        return {}
    # An anchor may stand for a document that grows beyond all memory when it is written out.
    if _read(lambda: any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))):
        raise BadFrontMatter("anchors and aliases are not read here")
    document = _read(lambda: yaml.safe_load(text))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadFrontMatter("it is not a mapping of names to values")
    plain: dict[str, Any] = _read(lambda: plain_json(document))
    _read(lambda: json.dumps(plain))  # numbers of thousands of digits have no text
    return plain


def lenient_front_matter(card: str | None) -> dict[str, Any]:
    """The metadata, or nothing where it cannot be read: a card may say what it likes."""
    try:
        return front_matter(card or "")
    except BadFrontMatter:
        return {}


def stated_texts(card: str, name: str) -> list[str]:
    """The text, or the texts, that the front matter gives under a name. Anchors are followed, and never written out.

    Raises:
        BadFrontMatter: it is no YAML.
    """
    text = _block(card)
    root = None if text is None else _read(lambda: yaml.compose(text, Loader=yaml.SafeLoader))
    if not isinstance(root, yaml.MappingNode):
        return []
    found = [value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == name]
    nodes = found[-1:]  # of a name that is given twice, the last counts
    if nodes and isinstance(nodes[0], yaml.SequenceNode):
        nodes = nodes[0].value
    return [node.value for node in nodes if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"]


def _block(card: str) -> str | None:
    found = _FRONT.match(card)
    return None if found is None else found.group(1)


def _read(reading: Callable[[], Any]) -> Any:
    try:
        return reading()
    except _UNREADABLE as error:
        raise BadFrontMatter(" ".join(str(error).split())[:300] or "it cannot be parsed") from None
