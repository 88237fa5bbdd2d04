"""What a merge method is, and where methods are found.

A method is one function in one file of `merging/methods/`, decorated with `@merge_method`. What it does to one module
is all it says:

* its positional parameters name what it needs, out of `NEEDS`; the engine hands over just that;
* its keyword-only parameters are its options: types, ranges and defaults become the schema that the API, the command
  line and the documentation show;
* `space="core"`: takes the cores [T, b, a] in the joint bases and returns one core [b, a]; the engine truncates it
  optimally. `space="factors"`: returns `Merged` factors itself;
* `dense=True`: a core method whose rule is coordinate by coordinate, so that it gives another result on the dense ΔW. A
  recipe may then ask for `space: "dense"`, where `cores` are the dense updates [T, out, in], as in the papers;
* `factors=f`: a core method that also has PEFT's form on A and B apart: `f`, with the same options and needs of its
  own, returns `Merged`. A recipe asks for it with `space: "factors"`; sources must then agree in rank (`apart.py`);
* `check=f`: which weights and options the method cannot take together, as far as types and ranges do not say it: `f`,
  called with one module's weights and the options, raises. The plan calls it, so that no job has to fail for it;
* `ranks` says which target ranks it can give: "chosen" (any), "sum" (always Σr) or "max" (always the largest).
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from deltas.factors import Factors
from deltas.joint import Joint
from merging.errors import BadParams, UnknownMethod

Space = Literal["core", "dense", "factors"]
Ranks = Literal["chosen", "sum", "max"]
LARGEST_NUMBER = 1e38  # of float32's; with larger weights and options sums overflow, and so would the result


@dataclass(frozen=True, slots=True, eq=False)
class ModuleInputs:
    """What a method may ask for, by the names of its positional parameters."""

    sources: list[Factors]  # one for each source that has this module, float32, scale folded in
    weights: list[float]
    rank: int  # the target rank of this module
    rng: torch.Generator  # seeded by the recipe's seed and the module's name
    cores: Tensor | None  # [T, b, a] float64, in the joint bases; in space "dense" the updates [T, out, in] float32
    joint: Joint  # the bases themselves; sums of cores from here never hold all of them
    depth: float  # where the module lies in the model: 0 (first block) … 1 (last)
    scales: list[float]  # what each adapter multiplied its B @ A by (alpha / r), folded into `sources` already


NEEDS = frozenset(ModuleInputs.__dataclass_fields__)
# What one module's sources, weights, rank, depth and seed decide: a method that needs no more gives the same result for
# the same module, whatever merge it is part of (merging/module_cache.py).
MODULE_NEEDS = frozenset({"sources", "weights", "rank", "rng", "cores", "joint", "depth", "scales"})


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """Merged factors of one module, and what the report should say about how they came about."""

    factors: Factors
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    name: str
    function: Callable[..., Any]
    space: Space
    dense: bool
    ranks: Ranks
    exact: bool
    source: str
    needs: tuple[str, ...]
    params: type[BaseModel]
    factors: Callable[..., Merged] | None = None
    check: Callable[..., None] | None = None

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Where the method can run; the first is the default."""
        others: tuple[tuple[Space, bool], ...] = (("dense", self.dense), ("factors", self.factors is not None))
        return (self.space, *(space for space, runs in others if runs))

    def adds_factors_apart(self, space: str) -> bool:
        """Whether A's and B's are merged each for themselves, so that the result also holds cross terms."""
        return self.name == "linear" or (space == "factors" and self.factors is not None)

    def ranks_in(self, space: str) -> Ranks:
        """The target ranks that the method can give there."""
        return "max" if self.adds_factors_apart(space) else self.ranks

    def needs_in(self, space: str) -> tuple[str, ...]:
        """What the method asks for there."""
        apart = self.factors if space == "factors" else None
        return self.needs if apart is None else _needs(self.name, apart)

    def run(self, space: str, inputs: ModuleInputs, options: Mapping[str, Any]) -> Any:
        """The method on one module: a merged core (or dense update), or `Merged` in space "factors"."""
        if space == "factors" and self.factors is not None:
            return self.factors(*(getattr(inputs, need) for need in self.needs_in(space)), **options)
        return self.function(*(getattr(inputs, need) for need in self.needs_in(space)), **options)

    @property
    def default_rank(self) -> Literal["sum", "max"]:
        return "sum" if self.ranks == "sum" else "max"

    def describe(self) -> dict[str, Any]:
        """The method as the API and the documentation show it."""
        return {
            "name": self.name,
            "summary": self.summary,
            "description": inspect.getdoc(self.function),
            "spaces": list(self.spaces),
            "ranks": self.ranks,
            "default_rank": self.default_rank,
            "exact": self.exact,
            "source": self.source,
            "params": self.params.model_json_schema(),
        }


_METHODS: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    space: Space,
    ranks: Ranks,
    source: str,
    exact: bool = False,
    dense: bool = False,
    factors: Callable[..., Merged] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a merge method. `exact`: its result at full rank is the weighted sum of updates.

    Raises:
        TypeError: if the function asks for something that is not in `NEEDS`, has no docstring, or an option has no
            default or no annotation; or if `factors` has other options than the function.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not function.__doc__:
            raise TypeError(f"merge method '{name}' needs a docstring: its first sentence is what users read")
        needs = _needs(name, function)
        options: dict[str, Any] = {}
        for parameter in _options(function):
            if parameter.default is parameter.empty or parameter.annotation is parameter.empty:
                raise TypeError(f"option '{parameter.name}' of merge method '{name}' needs a type and a default")
            options[parameter.name] = (parameter.annotation, parameter.default)
        if factors is not None:
            _needs(name, factors)
            if {parameter.name for parameter in _options(factors)} != set(options):
                raise TypeError(f"merge method '{name}' must have the same options on factors: {sorted(options)}")
        params = create_model(
            f"{name.title()}Params",
            __config__=ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False),
            **options,
        )
        _METHODS[name] = Method(name, function, space, dense, ranks, exact, source, needs, params, factors, check)
        return function

    return register


def _needs(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    found = tuple(
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    )
    for need in found:
        if need not in NEEDS:
            raise TypeError(f"merge method '{name}' asks for '{need}'; known: {sorted(NEEDS)}")
    return found


def _options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, sorted; importing `merging/methods/` registers them."""
    package = importlib.import_module("merging.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"merging.methods.{module.name}")
    return dict(sorted(_METHODS.items()))


def resolve_method(name: str, params: Mapping[str, Any]) -> tuple[Method, BaseModel]:
    """The method called `name` and its checked parameters.

    Raises:
        UnknownMethod: naming the known ones.
        BadParams: naming the parameter, what is wrong and the known ones.
    """
    known = methods()
    if name not in known:
        raise UnknownMethod(name, list(known))
    method = known[name]
    try:
        checked = method.params.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where: Sequence[Any] = first["loc"] or ("params",)
        problem = "there is no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadParams(name, str(where[0]), problem, list(method.params.model_fields)) from None
    for field_name, value in checked:
        if isinstance(value, float) and abs(value) > LARGEST_NUMBER:
            problem = f"{value:g} is too large: numbers lie within ±{LARGEST_NUMBER:g}"
            raise BadParams(name, field_name, problem, list(method.params.model_fields))
    return method, checked
