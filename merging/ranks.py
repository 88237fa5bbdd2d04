"""The target rank: one for all modules, or one that varies over the model, or a budget.

    16, "max", "sum", 0.99                                every module's; a share of its energy
    [4, 16]                                               a gradient over depth, rounded (of shares: [0.9, 0.99])
    [{"filter": "mlp", "rank": 8}, {"rank": [4, 16]}]     by module name: the first match decides
    {"budget": 12}                                        as many parameters as rank 12, spent where the energy is
    {"budget": 12, "share": 0.99}                         … and none on what a module needs no more for that share

A module whose rank is 0 is left out of the result, and the report counts what is lost with it.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from merging.pattern import are_rules, interpolate, matches, read_gradient, read_rules

WORDS = ("max", "sum")
SENTENCE = (
    'a rank is a whole number, "max", "sum", a share of the energy below 1, a list of ranks (first to last block),'
    ' a list of {filter, rank} rules, or {"budget": N}'
)
RankWord = Literal["max", "sum"]
RankValue = int | float | RankWord | tuple[int, ...] | tuple[float, ...]

_PLAIN = [{"type": "number"}, {"enum": list(WORDS)}, {"type": "array", "items": {"type": "number"}, "minItems": 2}]
_RULE = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "rank": {"anyOf": _PLAIN}},
    "required": ["rank"],
    "additionalProperties": False,
}
_BUDGET = {
    "type": "object",
    "properties": {
        "budget": {"type": "number", "exclusiveMinimum": 0},
        "share": {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    },
    "required": ["budget"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "anyOf": [*_PLAIN, {"type": "array", "items": _RULE, "minItems": 1}, _BUDGET, {"type": "null"}],
    "description": 'A number, "max", "sum", an energy share below 1, a gradient over depth, rules of which the first'
    " match decides (rank 0 leaves modules out), or a budget: the average rank, spent where the energy is.",
}


class RankRule(BaseModel):
    """The rank of the modules whose name holds `filter`; of all others, where it is null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: str | None = None
    rank: RankValue


class Budget(BaseModel):
    """Ranks are bought module by module where they keep most energy for a parameter.

    `budget`: the average rank; the result has at most as many parameters as one of this rank in every module. `share`:
    the share of its own energy that is enough for a module; None: no module has enough.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    budget: Annotated[float, Field(gt=0)]
    share: Annotated[float, Field(gt=0, lt=1)] | None = None


def read_rank(value: Any) -> "RankValue | tuple[RankRule, ...] | Budget | None":
    """The rank in its normal form. Whether a plain number can be given is the plan's to say.

    Raises:
        ValueError: in one sentence.
    """
    if value is None or isinstance(value, Budget):
        return value
    if isinstance(value, dict) and "budget" in value:
        return _budget(value)
    if isinstance(value, dict | RankRule):
        value = [value]
    if isinstance(value, list | tuple):
        if not are_rules(value):
            return _gradient(value)
        rules = read_rules(value, "rank", _rule_value)
        return rules[0][1] if len(rules) == 1 else tuple(RankRule(filter=text, rank=found) for text, found in rules)
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in WORDS):
        raise ValueError(SENTENCE)
    plain: int | float | RankWord = value
    return plain


def plain_rank(rank: Any) -> Any:
    """The rank as JSON says it."""
    if isinstance(rank, Budget):
        return rank.model_dump(mode="json", exclude_none=True)
    if isinstance(rank, tuple):
        return [
            part.model_dump(mode="json", exclude_none=True) if isinstance(part, RankRule) else part for part in rank
        ]
    return rank


Rank = Annotated[
    RankValue | tuple[RankRule, ...] | Budget | None,
    PlainValidator(read_rank),
    PlainSerializer(plain_rank),
    WithJsonSchema(SCHEMA),
]


def rank_at(rank: RankValue | tuple[RankRule, ...], module: str, depth: float) -> int | float | str:
    """The rank asked for one module at `depth` (0…1): an integer, a word, or (a float) a share of its energy."""
    value: Any = rank
    if isinstance(value, tuple) and isinstance(value[0], RankRule):
        value = next(rule.rank for rule in value if matches(rule.filter, module))
    if not isinstance(value, tuple):
        return cast(int | float | str, value)
    found = interpolate(value, depth)
    return found if isinstance(value[0], float) else math.floor(found + 0.5)


def rank_filters(rank: Any) -> list[str]:
    """The filters of the rank's rules."""
    parts = rank if isinstance(rank, tuple) else ()
    return [part.filter for part in parts if isinstance(part, RankRule) and part.filter is not None]


def has_rank_gradient(rank: Any) -> bool:
    """Whether the rank depends on how many blocks the model has."""
    parts = rank if isinstance(rank, tuple) else ()
    return any(not isinstance(part, RankRule) or isinstance(part.rank, tuple) for part in parts)


def _gradient(points: Sequence[Any]) -> int | float | tuple[int, ...] | tuple[float, ...]:
    """Whole numbers are ranks, numbers between 0 and 1 are shares; a mixture is neither."""
    found = read_gradient(points, "rank")
    numbers = found if isinstance(found, tuple) else (found,)
    if all(0 < number < 1 for number in numbers):
        return found
    if not all(number >= 0 and number == int(number) for number in numbers):
        raise ValueError("a list of ranks holds whole numbers from 0, or shares of the energy between 0 and 1 alone")
    whole = tuple(int(number) for number in numbers)
    return whole if isinstance(found, tuple) else whole[0]


def _rule_value(value: Any) -> RankValue:
    if isinstance(value, list | tuple):
        return _gradient(value)
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in WORDS):
        raise ValueError(f"the rank of a rule: {SENTENCE.partition(', a list of {')[0]}")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError(f"the rank of a rule is {value}: neither a whole number nor a share of the energy below 1")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"the rank of a rule is {value}; 0 leaves its modules out, and more is a rank")
    found: RankValue = value
    return found


def _budget(document: dict[str, Any]) -> Budget:
    try:
        return Budget.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        problem = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
        raise ValueError(f"'{field}' of a budget: {problem[:1].lower() + problem[1:]}") from None
