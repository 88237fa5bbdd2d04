"""Biases, modules saved whole, rows of an embedding: what sources change besides low-rank updates.

One rule, whatever the method: the result's change is the exact weighted sum Σ w_t Δ_t of the sources' changes. Methods
vote, cluster and truncate among low-rank updates; a bias or a norm has no ranks to do that with. A tensor that the base
model lacks (a new head) was trained from its own random start, so two of them cannot be added: one source's is copied.

How PEFT can hold the change decides how it is written (`Carrier`):

* lora_bias   Δb beside lora_B, on linear layers that have factors; needs nothing of the base model
* bias        the bias itself, b₀ + Δb, where the result also adapts embeddings or experts (which PEFT refuses together
              with lora_bias), and on layers without factors
* module      the tensor itself, W₀ + ΔW, under modules_to_save
* rows        the rows themselves, under trainable_token_indices

Rows of added tokens (merging/tokens.py) come after the base model's, in both of the last two, under their new ids.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.base import BaseWeights
from deltas.vocabulary import is_vocabulary
from merging.errors import ExtrasConflict
from merging.tokens import AddedRow, Vocabulary, added_rows, mean_row

Carrier = Literal["lora_bias", "bias", "module", "rows"]
# What to do about a tensor that sources hold in two ways.
ONE_WAY = "PEFT holds a tensor in one way alone: merge those that hold it alike, or save all of them in the same way"


@dataclass(frozen=True, slots=True)
class PlannedExtra:
    """One tensor of the base model that is changed by the exact weighted sum, and how the result holds it."""

    name: str
    carrier: Carrier
    sources: tuple[int, ...]
    weights: tuple[float, ...]  # of `sources`, for this tensor; 1 for a new one
    shape: tuple[int, ...]  # as it is written
    rows: tuple[int, ...] = ()  # carrier "rows": the token ids
    new: bool = False  # the base model has no such tensor
    added: tuple[AddedRow, ...] = ()  # of added tokens: the last rows of what is written

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    def known(self, rows: slice) -> int:
        """How many of these rows of what is written, from the first on, are changes of rows that the base has."""
        start, stop, _ = rows.indices(self.shape[0])
        return max(0, min(stop, self.shape[0] - len(self.added)) - start)

    def to_dict(self, refs: Sequence[str]) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "written_as": self.carrier,
            "new": self.new,
            "sources": [refs[i] for i in self.sources],
            "weights": list(self.weights),
        }


def plan_extras(
    refs: Sequence[str],
    adapters: Sequence[Adapter],
    factored: Mapping[str, int],
    linear_only: bool,
    weight: Callable[[int, str], float],
    vocabulary: Vocabulary | None = None,
) -> tuple[PlannedExtra, ...]:
    """Everything that the sources change besides low-rank updates, sorted by name.

    `factored`: each module with factors → a source that has it; `linear_only`: whether all of them are linear layers;
    `weight(source, module)`: a source's weight there; `vocabulary`: the tokens that sources add.

    Raises:
        ExtrasConflict: PEFT's file cannot hold the sum, or there is no sum.
    """
    members: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name, extra in adapter.extras.items():
            if extra.kind != "lora_bias" or extra.module in factored:  # else left out, with its module: weight 0
                members.setdefault(name, []).append(i)
    planned = [_plan(name, members, refs, adapters, factored, linear_only, vocabulary) for name in sorted(members)]
    return tuple(
        replace(extra, weights=tuple(1.0 if extra.new else weight(i, extra.module) for i in extra.sources))
        for extra in planned
    )


def _plan(
    name: str,
    members: Mapping[str, Sequence[int]],
    refs: Sequence[str],
    adapters: Sequence[Adapter],
    factored: Mapping[str, int],
    linear_only: bool,
    vocabulary: Vocabulary | None,
) -> PlannedExtra:
    sources = tuple(members[name])
    extras = [adapters[i].extras[name] for i in sources]
    kinds = {extra.kind for extra in extras}
    module, _, leaf = name.rpartition(".")
    first, last = refs[sources[0]], refs[sources[-1]]
    holder = refs[factored[module]] if module in factored else None
    base = base_of(adapters)
    if not is_vocabulary(name) or base is None or base.shape(name) is None:
        vocabulary = None  # it decides nothing here
    added: tuple[AddedRow, ...] = ()
    if vocabulary is not None:
        added = added_rows(name, refs, adapters, sources, vocabulary)
    if kinds == {"rows"}:
        if holder is not None:
            raise ExtrasConflict(name, f"has retrained rows in '{first}' and low-rank factors in '{holder}'; {ONE_WAY}")
        most = vocabulary.base_rows if vocabulary is not None else math.inf
        rows = tuple(sorted({row for extra in extras for row in extra.rows if row < most}))
        rows += tuple(row.id for row in added)
        return PlannedExtra(name, "rows", sources, (), (len(rows), extras[0].shape[1]), rows, added=added)
    if "rows" in kinds:
        retrained, whole = (
            next(refs[i] for i, extra in zip(sources, extras, strict=True) if (extra.kind == "rows") == rows)
            for rows in (True, False)
        )
        raise ExtrasConflict(
            name, f"has retrained rows in '{retrained}' (trainable_token_indices) and is saved whole in '{whole}'"
            f" (modules_to_save); {ONE_WAY}"
        )  # fmt: skip
    shape = extras[0].shape
    if vocabulary is not None:
        shape = (vocabulary.base_rows + len(added), *shape[1:])
    if any(extra.shape[1:] != shape[1:] or (extra.shape != shape and vocabulary is None) for extra in extras):
        raise ExtrasConflict(name, f"has different shapes in '{first}' and '{last}'")
    if leaf == "bias" and holder is not None and linear_only:
        return PlannedExtra(name, "lora_bias", sources, (), shape)
    new = base is None or base.shape(name) is None
    if new and "lora_bias" in kinds:
        raise ExtrasConflict(
            name, f"is a lora_bias in '{first}', which PEFT holds neither beside adapted embeddings or experts nor in a"
            " base model without that bias"
        )  # fmt: skip
    if new and len(sources) > 1:
        raise ExtrasConflict(
            name, f"is not in the base model: '{first}' and '{last}' trained it apart, and no sum fits"
        )
    if leaf == "bias" and f"{module}.weight" not in members:
        return PlannedExtra(name, "bias", sources, (), shape, new=new)
    if holder is not None:
        raise ExtrasConflict(name, f"is saved whole in '{first}' and has low-rank factors in '{holder}'; {ONE_WAY}")
    return PlannedExtra(name, "module", sources, (), shape, new=new, added=added)


def base_of(adapters: Sequence[Adapter]) -> BaseWeights | None:
    """The base model's weights, which every source that is measured from them has."""
    return next((adapter.base for adapter in adapters if adapter.base is not None), None)


def extra_change(extra: PlannedExtra, adapters: Sequence[Adapter], rows: slice) -> Tensor:
    """Σ w_t Δ_t in float64, for these rows of what is written; the copied rows where the base model has none, and the
    mean of the sources' rows for an added token."""
    start, stop, _ = rows.indices(extra.shape[0])
    total = torch.zeros(stop - start, *extra.shape[1:], dtype=torch.float64)
    known = extra.known(rows)
    for i, weight in zip(extra.sources, extra.weights, strict=True) if known else ():
        adapter = adapters[i]
        if extra.carrier != "rows":
            total[:known] += adapter.extra(extra.name, slice(start, start + known)).double() * weight
            continue
        own = adapter.extras[extra.name].rows
        for place, row in enumerate(extra.rows[start : start + known]):
            if row in own:
                at = own.index(row)
                total[place] += adapter.extra(extra.name, slice(at, at + 1))[0].double() * weight
    for place in range(known, stop - start):
        token = extra.added[start + place - (extra.shape[0] - len(extra.added))]
        members = zip(token.members, token.places, strict=True)
        read = [adapters[extra.sources[k]].extra(extra.name, slice(at, at + 1))[0] for k, at in members]
        total[place] = mean_row(token, extra.weights, read)
    return total


def extra_tensor(extra: PlannedExtra, change: Tensor, base: BaseWeights | None, rows: slice) -> Tensor:
    """What the result's file holds for this change of these rows, in float64."""
    known = extra.known(rows)
    if extra.carrier == "lora_bias" or extra.new or known == 0:
        return change
    assert base is not None  # otherwise an obstacle of the source
    start = rows.indices(extra.shape[0])[0]
    if extra.carrier == "rows":
        ids = extra.rows[start : start + known]
        there = torch.cat([base.tensor(extra.name, slice(i, i + 1)) for i in ids])
    else:
        there = base.tensor(extra.name, slice(start, start + known))
    return torch.cat([change[:known] + there, change[known:]])


def extras_config(extras: Sequence[PlannedExtra]) -> dict[str, Any]:
    """The fields of the result's adapter_config.json that extras decide; none without them."""
    carriers = {extra.carrier for extra in extras}
    return {
        **({"lora_bias": True} if "lora_bias" in carriers else {}),
        **({"bias": "all"} if "bias" in carriers else {}),
        "modules_to_save": sorted({e.module for e in extras if e.carrier == "module"}) or None,
        **(
            {"trainable_token_indices": {e.module: list(e.rows) for e in extras if e.carrier == "rows"}}
            if "rows" in carriers
            else {}
        ),
    }


def extras_warnings(refs: Sequence[str], extras: Sequence[PlannedExtra]) -> list[str]:
    """How the plan says that these are merged, and where a new head comes from."""
    summed = [extra for extra in extras if not extra.new]
    found = []
    if summed:
        found.append(
            f"{len(summed)} tensors besides low-rank updates (for example '{summed[0].name}') are changed by the exact"
            " weighted sum of the sources' changes, whatever the method"
        )
    found.extend(
        f"'{extra.name}' is not in the base model; it is copied from '{refs[extra.sources[0]]}', without its weight"
        for extra in extras
        if extra.new
    )
    return found
