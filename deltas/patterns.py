"""Patterns of module names, as a stranger's config holds them.

PEFT's rule: the first pattern (in the file's order) that matches the end of a module's name wins (huggingface/peft
0.21.2, `get_pattern_key`). Most patterns are plain paths and are looked up; the others are regular expressions, which
can cost anything: `((a{99}){99}){99}` fills the memory when it is compiled, `(a+)+b` takes for ever when it is matched.
So the size to which repeats unroll is bounded before compiling, and all matching for one field shares two seconds.
"""

import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import regex

from deltas.errors import BadConfig

MAX_PATTERN = 10_000  # characters
MAX_SIZE = 50_000  # of all expressions of one field, unrolled; the engine takes some 1.5 KB for each unit
EACH = 50  # what an expression costs beside its own size
MAX_DEPTH = 50  # of parentheses
MATCH_TIMEOUT_S = 0.2  # for one name
BUDGET_S = 2.0  # for all names together
PLAIN = str.maketrans("", "", "._-")
COUNT = regex.compile(r"\{(\d{0,6})(?:,(\d{0,6}))?\}")
# What Python's re, which PEFT uses, knows behind "(?". Other engines' recursion would fill the memory.
GROUP = regex.compile(r"\(\?(?:[:=!>#]|<[=!]|P[<=]|[aiLmsux-]+[:)])")

Number = TypeVar("Number", bound=float)


class Budget:
    """What the expressions of one field may cost together: their size when compiled, and seconds when matched."""

    def __init__(self, field: str) -> None:
        self.field, self.size, self.seconds = field, MAX_SIZE, BUDGET_S

    def take_size(self, pattern: str) -> None:
        """
        Raises:
            BadConfig: if the pattern is too long, or the field's patterns are too large together.
        """
        if len(pattern) > MAX_PATTERN:
            problem = f"a pattern of {len(pattern)} characters; at most {MAX_PATTERN} are accepted"
            raise BadConfig(f"{self.field} holds {problem}", self.field)
        self.size -= EACH + unrolled_size(pattern, self.field)
        if self.size < 0:
            raise BadConfig(
                f"{self.field} holds '{pattern[:80]}', with which its regular expressions are too large: use fewer of"
                " them, and fewer repeats inside repeats",
                self.field,
            )

    def next_timeout(self) -> float:
        """
        Raises:
            TimeoutError: if nothing is left.
        """
        if self.seconds <= 0:
            raise TimeoutError
        return min(MATCH_TIMEOUT_S, self.seconds)


class Expression:
    """A stranger's regular expression, found to be small, and matched within the time that its field has.

    `at_end`: it has to match the end of a name, from its start or a dot, rather than all of it.

    Raises:
        BadConfig: naming the field, if it is not a regular expression or too large.
    """

    def __init__(self, pattern: str, budget: Budget, *, at_end: bool = False) -> None:
        self.pattern, self.budget = pattern, budget
        budget.take_size(pattern)
        try:
            self._compiled = regex.compile(rf"(.*\.)?({pattern})" if at_end else pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            what = str(error) if isinstance(error, regex.error) else "it is nested too deeply"
            problem = f"'{pattern[:80]}', which is not a regular expression: {what}"
            raise BadConfig(f"{budget.field} holds {problem}", budget.field) from None

    def matches(self, module: str) -> bool:
        """
        Raises:
            BadConfig: if that takes too long.
        """
        began = time.monotonic()
        try:
            return self._compiled.fullmatch(module, timeout=self.budget.next_timeout()) is not None
        except TimeoutError:
            problem = f"'{self.pattern[:80]}', which takes too long to match"
            raise BadConfig(f"{self.budget.field} holds {problem}", self.budget.field) from None
        finally:
            self.budget.seconds -= time.monotonic() - began


class PatternTable(dict[str, Number]):
    """rank_pattern or alpha_pattern: patterns, in the file's order, to numbers.

    Raises:
        BadConfig: as `Expression`.
    """

    def __init__(self, table: Mapping[str, Number], field: str) -> None:
        super().__init__(table)
        budget = Budget(field)
        self._order = {pattern: i for i, pattern in enumerate(self)}
        self._expressions = [
            (i, Expression(pattern, budget, at_end=True))
            for pattern, i in self._order.items()
            if not pattern.translate(PLAIN).isalnum()
        ]

    def first(self, module: str, default: Number) -> Number:
        """The number of the first pattern that matches the end of `module`, or `default`.

        Raises:
            BadConfig: if matching takes too long.
        """
        if not self:
            return default
        found = min((self._order[end] for end in endings(module) if end in self._order), default=len(self))
        for i, expression in self._expressions:
            if i >= found:
                break
            if expression.matches(module):
                return self[expression.pattern]
        return next((self[end] for end in endings(module) if self._order.get(end) == found), default)


def written_pattern(numbers: Mapping[str, Number], common: Number) -> dict[str, Number]:
    """The pattern that gives modules these numbers by their full names; `common` needs no entry.

    A name stands for every name that ends in it, and configs are written with sorted keys, so that a longer name cannot
    come first. Where it ends another module's name ("proj_out" and "blocks.0.proj_out"), it is anchored: "^proj_out".
    """
    longer = {end for name in numbers for end in endings(name) if end != name}
    return {
        f"^{name}" if name in longer else name: number for name, number in sorted(numbers.items()) if number != common
    }


def endings(module: str) -> Iterator[str]:
    """The name itself and what follows each of its dots."""
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


def unrolled_size(pattern: str, field: str) -> int:
    """About how many units the expression has once its repeats are written out: x+ is xx*, x{2,5} is at most xxxxx.

    Raises:
        BadConfig: if parentheses are too deep, or of a kind that Python's re lacks, or if a brace is no count (engines
            differ in what they make of it).
    """
    outer: list[int] = []  # sizes before each open parenthesis
    total, last, at = 0, 0, 0
    while at < len(pattern):
        sign = pattern[at]
        step = 1
        if sign == "(":
            outer.append(total + last)
            total, last = 0, 0
            if pattern.startswith("(?", at) and GROUP.match(pattern, at) is None:
                raise BadConfig(f"{field} holds '{pattern[:80]}', in which a group is of no known kind", field)
            if len(outer) > MAX_DEPTH:
                raise BadConfig(f"{field} holds '{pattern[:80]}', whose parentheses are nested too deeply", field)
        elif sign == ")":
            total, last = (outer.pop() if outer else 0), total + last + 1
        elif sign == "+":
            last *= 2
        elif sign == "{":
            count = COUNT.match(pattern, at)
            if count is None:
                raise BadConfig(f"{field} holds '{pattern[:80]}', in which a brace is no count such as {{2}}", field)
            last *= max(int(count[1] or 0), int(count[2] or 0)) + 1
            step = len(count[0])
        elif sign not in "*?|":
            total, last = total + last, 1
            if sign == "\\":
                step = 2
            elif sign == "[":
                end = pattern.find("]", at + (3 if pattern[at + 1 : at + 2] == "^" else 2))
                step = end + 1 - at if end > 0 else len(pattern)
        at += step
    return sum(outer) + total + last
