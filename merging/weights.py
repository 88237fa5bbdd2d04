"""A source's weight: a number, a gradient over depth, or rules by module name (see `merging/pattern.py`).

    0.7
    [0.2, 0.8]                                              first block … last block
    [{"filter": "self_attn", "value": [1, 0.5]}, {"value": 0.3}]

Where such a weight is 0, the source is left out of the module as if it did not have it: methods that average, vote or
share ranks out then do so among the others. (A plain 0 keeps its source in every module, as a zero update.)
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, WithJsonSchema

from merging.pattern import are_rules, interpolate, matches, read_gradient, read_number, read_rules

SENTENCE = "a weight is a number, a list of numbers (first to last block), or a list of {filter, value} rules"
_NUMBER = {"type": "number"}
_VALUE = {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER, "minItems": 2}]}
_RULE = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": _VALUE},
    "required": ["value"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "anyOf": [*_VALUE["anyOf"], {"type": "array", "items": _RULE, "minItems": 1}],
    "description": "A number, a gradient over depth (first block … last block), or rules of which the first match"
    " decides; a filter is a part of the module's name, and the last rule has none.",
}


class WeightRule(BaseModel):
    """The weight of the modules whose name holds `filter`; of all others, where it is null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: str | None = None
    value: float | tuple[float, ...]


def read_weight(value: Any) -> "float | tuple[float, ...] | tuple[WeightRule, ...]":
    """The weight in its normal form.

    Raises:
        ValueError: in one sentence.
    """
    if isinstance(value, dict | WeightRule):
        value = [value]
    if not isinstance(value, list | tuple):
        return _number(value)
    if not are_rules(value):
        return read_gradient(value, "weight")
    rules = read_rules(value, "value", _rule_value)
    if len(rules) == 1:
        return rules[0][1]
    return tuple(WeightRule(filter=text, value=found) for text, found in rules)


def plain_weight(weight: "float | tuple[float, ...] | tuple[WeightRule, ...]") -> Any:
    """The weight as JSON says it."""
    if isinstance(weight, float):
        return weight
    return [
        part.model_dump(mode="json", exclude_none=True) if isinstance(part, WeightRule) else part for part in weight
    ]


Weight = Annotated[
    float | tuple[float, ...] | tuple[WeightRule, ...],
    PlainValidator(read_weight),
    PlainSerializer(plain_weight),
    WithJsonSchema(SCHEMA),
]


def weight_at(weight: Weight, module: str, depth: float) -> float:
    """The weight of one module at `depth` (0…1)."""
    value: float | Sequence[Any] = weight
    if not isinstance(value, float) and isinstance(value[0], WeightRule):
        value = next(rule.value for rule in value if matches(rule.filter, module))
    return value if isinstance(value, float) else interpolate(value, depth)


def numbers_of(weight: Weight) -> list[float]:
    """Every number that the weight is made of."""
    if isinstance(weight, float):
        return [weight]
    return [n for part in weight for n in (numbers_of(part.value) if isinstance(part, WeightRule) else [part])]


def weight_filters(weight: Weight) -> list[str]:
    """The filters of the weight's rules."""
    parts = () if isinstance(weight, float) else weight
    return [part.filter for part in parts if isinstance(part, WeightRule) and part.filter is not None]


def has_gradient(weight: Weight) -> bool:
    """Whether the weight depends on how many blocks the model has."""
    if isinstance(weight, float):
        return False
    return any(not isinstance(part, WeightRule) or not isinstance(part.value, float) for part in weight)


def _rule_value(value: Any) -> float | tuple[float, ...]:
    if isinstance(value, list | tuple):
        return read_gradient(value, "weight")
    return read_number(value, "the value of a rule must be a finite number, or a list of them (first to last block)")


def _number(value: Any) -> float:
    # Which source has a NaN or Inf for its weight is the recipe's to say.
    return value if isinstance(value, float) else read_number(value, SENTENCE)
