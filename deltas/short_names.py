"""Module names as `target_modules` says them: short where that means the same modules, anchored where a list would mean
more."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from deltas.patterns import MAX_PATTERN, endings

_NUMBER = re.compile(r"(?:^|(?<=\.))[0-9]+(?=\.|$)")


def target_modules(names: Sequence[str], base_modules: Mapping[str, tuple[int, int]] | None) -> list[str] | str:
    """The list of short names; or, where it would name other modules, too, a regular expression for these alone.

    PEFT finds a listed name at the end of any other: "proj_out" in "blocks.0.proj_out". Where the base model is not
    known, names of the file that end in one another show that it has such modules.
    """
    return no_more_than(names, short_names(names, base_modules), base_modules)


def no_more_than(
    names: Sequence[str], listed: list[str], base_modules: Mapping[str, tuple[int, int]] | None
) -> list[str] | str:
    """`listed`, which names these modules; or a regular expression for them alone, where it would name others, too."""
    known = base_modules.keys() if base_modules else set(names)
    others = known - set(names) if base_modules else known
    meant = known & set(listed)  # a name that the base lacks is one below another root: the base with a head around it
    more = any(end in meant for name in others for end in endings(name) if base_modules or end != name)
    expression = _expression(names) if more else ""
    return expression if more and len(expression) <= MAX_PATTERN else listed  # what nobody reads helps nobody


def _expression(names: Sequence[str]) -> str:
    """Matches these names alone; those that differ by their block's number are one alternative."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        first = _NUMBER.search(name)
        start, end = first.span() if first else (len(name), len(name))
        numbers.setdefault((name[:start], name[end:]), []).append(name[start:end])
    return "|".join(
        re.escape(head) + (f"({'|'.join(found)})" if any(found) else "") + re.escape(tail)
        for (head, tail), found in numbers.items()
    )


def short_names(names: Sequence[str], base_modules: Mapping[str, tuple[int, int]] | None) -> list[str]:
    """Short names ("q_proj") where `names` has every module of the base that ends so, full paths elsewhere.

    A short name that covers more modules than the file holds would make PEFT add random, untrained factors.
    `base_modules`: the base model's linear layers, where they are known.
    """
    base: Counter[str] = Counter(name.rsplit(".", 1)[-1] for name in base_modules or {})
    ours = Counter(name.rsplit(".", 1)[-1] for name in names)
    short = {suffix for suffix, count in ours.items() if base.get(suffix) == count}
    full = [name for name in sorted(names) if name.rsplit(".", 1)[-1] not in short]
    return sorted(short) + full
