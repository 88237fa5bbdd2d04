"""The weighted sum of adapters of one family as an adapter of that family, exact where the family is closed.

found = sum_in_family([one, two], {module: {0: 0.5, 1: 2.0} for module in one.modules}, base_modules)
found.config, found.tensors      # adapter_config.json and adapter_model.safetensors, as PEFT reads them
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.errors import BadTensors, NotClosed
from deltas.families.sums import CLOSED, Closed, Term
from deltas.short_names import no_more_than

# Fields of the first source's config that the result takes over.
KEPT = ("auto_mapping", "fan_in_fan_out", "mini_r", "revision", "task_type")


class FamilySum(NamedTuple):
    """The result: its adapter_config.json, and its tensors by PEFT's keys, name-sorted, in float32."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def check_closed(adapters: Sequence[Adapter]) -> Closed:
    """How these adapters are summed inside their family.

    Raises:
        NotClosed: their family is not closed under sums, or they are not alike enough.
    """
    first = adapters[0]
    closed = CLOSED.get(first.family)
    if closed is None:
        raise NotClosed(f"a weighted sum of {first.family} adapters is none itself; export it as LoRA")
    for other in adapters:
        if CLOSED.get(other.family) is not closed or (first.family.endswith("bat") != other.family.endswith("bat")):
            found = f"{first.family} and {other.family}"
            raise NotClosed(f"a sum inside one family needs sources of one, found {found}; export it as LoRA")
        if closed.same(other.config.raw) != closed.same(first.config.raw):
            raise NotClosed(
                f"these {first.family} adapters differ in what a sum inside the family must share (the rank, mode or"
                " form of their configs); export it as LoRA"
            )
    return closed


def sum_in_family(
    adapters: Sequence[Adapter],
    weights: Mapping[str, Mapping[int, float]],
    base_modules: Mapping[str, tuple[int, int]] | None = None,
) -> FamilySum:
    """Σ w ΔW of adapters that `check_closed` accepts. `weights`: module → index of a source that has it → its weight;
    `base_modules`: the base model's linear layers, where they are known, so that PEFT adapts no others than these.

    Raises:
        NotClosed: as `check_closed`.
        BadTensors: a module's vectors do not fit each other (IA³ on inputs in one source, on outputs in another).
    """
    closed = check_closed(adapters)
    ranks = [max((_width(adapter, name) for name in adapter.modules), default=0) for adapter in adapters]
    slots = [0, *accumulate(ranks)] if closed.joins else [0] * (len(ranks) + 1)
    rank = slots[-1] if closed.joins else adapters[0].config.rank
    tensors: dict[str, Tensor] = {}
    inputs: list[str] = []
    for name in sorted(weights):
        terms = [Term(adapters[i].parts(name), weight, slots[i]) for i, weight in sorted(weights[name].items())]
        shapes = {tuple(term.parts["ia3_l"].shape) for term in terms if "ia3_l" in term.parts}
        if len(shapes) > 1:
            raise BadTensors(f"module '{name}' has its inputs scaled in one source and its outputs in another")
        if any(shape[0] == 1 for shape in shapes):
            inputs.append(name)
        for part, value in closed.add(terms, rank).items():
            tensors[f"base_model.model.{name}.{part}"] = value.to(torch.float32).contiguous()
    raw = adapters[0].config.raw
    config = {field: raw[field] for field in KEPT if field in raw} | {
        "peft_type": closed.peft_type,
        "base_model_name_or_path": adapters[0].config.base_model,
        "inference_mode": True,
        "target_modules": no_more_than(list(weights), sorted(weights), base_modules),
    }
    if closed.peft_type == "IA3":
        # Looked for among the adapted modules alone. PEFT asks for a list inside target_modules' list.
        config["feedforward_modules"] = no_more_than(inputs, inputs, dict.fromkeys(weights, (0, 0)))
    else:
        config["r"] = rank
    if closed.peft_type == "MISS":
        config["init_weights"] = raw.get("init_weights") or True
    if closed.peft_type == "GLORA":
        config |= {"config_A_B": raw.get("config_A_B", "lora"), "config_C": "none", "config_D_E": "none"}
    return FamilySum(config, tensors)


def _width(adapter: Adapter, name: str) -> int:
    """The ranks that a module's own parts have, where its family joins them."""
    shapes = adapter.part_shapes(name)
    return max((shapes[part][1] for part in ("hira_B", "glora_A.Xd", "glora_B.Xd") if part in shapes), default=0)
