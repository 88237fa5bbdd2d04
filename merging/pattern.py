"""Values that vary over the model, as mergekit users write them: gradients over depth, and rules by module name.

* A gradient is a list of two or more numbers, spread evenly from depth 0 to depth 1 and interpolated linearly.
* Rules are a list of {"filter": text, <key>: value}; the first whose filter is part of the module's name decides, and
  the last, without a filter (or with "*"), is the default. A value is a number or again a gradient.

A filter is plain text, not a regular expression: a stranger's cannot be slow, and `layers.1.` with its dots is as
exact as any. Rules are brought to a normal form when they are read (those that can decide nothing are dropped), so
that recipes that mean the same have the same digest.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

MOST_POINTS = 256
MOST_RULES = 64
MOST_FILTER_CHARACTERS = 200
LARGEST = sys.float_info.max

Value = TypeVar("Value")


class Rule(NamedTuple):
    """One rule as it was read: the filter (None: everything) and the value that it gives."""

    filter: str | None
    value: Any


def matches(text: str | None, module: str) -> bool:
    """Whether a filter lets this module through."""
    return text is None or text in module


def interpolate(gradient: Sequence[float], depth: float) -> float:
    """The gradient at `depth` (0…1), exact at its points.

    >>> interpolate([0.0, 1.0, 4.0], 0.75)
    2.5
    """
    place = depth * (len(gradient) - 1)
    left = min(int(place), len(gradient) - 2)
    share = place - left
    return (1 - share) * gradient[left] + share * gradient[left + 1]


def are_rules(value: Sequence[Any]) -> bool:
    """Whether a list holds rules rather than the points of a gradient."""
    return any(isinstance(entry, Mapping | BaseModel) for entry in value)


def read_gradient(points: Sequence[Any], what: str) -> float | tuple[float, ...]:
    """The points of a gradient, or its one number where they are all the same.

    Raises:
        ValueError: in one sentence.
    """
    if not 2 <= len(points) <= MOST_POINTS:
        raise ValueError(
            f"a list of {what}s runs from the first block to the last and has 2 to {MOST_POINTS} numbers,"
            f" found {len(points)}"
        )
    found = tuple(read_number(point, f"every entry of a list of {what}s must be a finite number") for point in points)
    return found[0] if len(set(found)) == 1 else found


def read_number(value: Any, sentence: str) -> float:
    """A finite number. Raises ValueError with `sentence` for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer that no float can hold is as good as infinite; comparing it is safe, converting it is not.
    if not number or not -LARGEST <= value <= LARGEST:
        raise ValueError(sentence)
    return float(value)


def read_rules(entries: Sequence[Any], key: str, read: Callable[[Any], Value]) -> list[tuple[str | None, Value]]:
    """Rules in normal form: (filter, value) pairs, of which the last alone has no filter.

    `key` names the field of a rule's value, `read` checks one value.

    Raises:
        ValueError: in one sentence.
    """
    if len(entries) > MOST_RULES:
        raise ValueError(f"there may be at most {MOST_RULES} rules, found {len(entries)}")
    found: dict[str | None, Value] = {}
    for entry in entries:
        text, value = _entry(entry, key)
        # A filter that was given before never decides, and neither does anything after the default.
        if text not in found and None not in found:
            found[text] = read(value)
    if None not in found:
        raise ValueError(f'the rules have no default; end them with one without a filter, such as {{"{key}": 1}}')
    default = found.pop(None)
    rules = list(found.items())
    while rules and rules[-1][1] == default:
        rules.pop()
    return [*rules, (None, default)]


def _entry(entry: Any, key: str) -> tuple[str | None, Any]:
    document = entry.model_dump() if isinstance(entry, BaseModel) else entry
    if not isinstance(document, Mapping) or key not in document or not document.keys() <= {"filter", key}:
        raise ValueError(f'every rule is written {{"filter": text, "{key}": …}}, the last one without the filter')
    text = document.get("filter")
    if text is None or text == "*":
        return None, document[key]
    if not isinstance(text, str) or not 1 <= len(text) <= MOST_FILTER_CHARACTERS:
        raise ValueError(f"a filter is a part of the module's name, 1 to {MOST_FILTER_CHARACTERS} characters long")
    return text, document[key]
