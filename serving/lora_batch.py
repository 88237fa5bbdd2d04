"""Any sets of adapters in one batch, exactly: sums of updates as concatenated ranks.

For a linear layer with input x [rows, tokens, in], all adapters of the batch stacked into A [R, in] and Bt [R, out],
and mask [rows, 1, R] holding for every row the weight of each rank's adapter (0: not in this row's set):

    y += ((x @ Aᵀ) * mask) @ Bt

Ranks, targets and weights may differ in every way; nothing is padded to a common rank. If all rows have the same set,
its weights are folded into A and the mask falls away. Stacks are rebuilt only when an adapter joins that they lack, or
when most of what they hold has left; masks when the rows change. The base model's weights are never touched.

With many tokens per row the arithmetic counts, so there each run of rows meets only its own adapters, straight from
the pool, without a stack. On a processor nothing is stacked at all: a compiled loop reads each row's factors where
they are (`row_kernel.py`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from serving.adapter_set import AdapterSet
from serving.forms import Hook, form_hooks
from serving.resident import ResidentAdapter, ServedFactors
from serving.row_call import runs_on
from serving.row_kernel import compiled, row_hooks

Run = tuple[slice, ServedFactors, float]
"""Neighbouring rows, and what one adapter of their set adds at which weight."""

_KEPT_STACKS = 2  # of the rows that run now, and of those before, in case they come back


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The factors of several adapters, concatenated module by module.

    `layouts`: tensors [R] that say which adapter (index into `digests`) each rank belongs to; modules with the same
    layout share one, and so one mask. `folded`: the set whose weights are folded into A, if any.
    """

    digests: tuple[str, ...]
    folded: AdapterSet | None
    modules: Mapping[str, ServedFactors]
    layouts: tuple[Tensor, ...]
    layout_of: Mapping[str, int]


class LoraBatch:
    """Applies a weighted set per row to a model's linear layers, through hooks that are set for one batch."""

    def __init__(self, model: nn.Module) -> None:
        self._linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        self._stacks: OrderedDict[tuple[tuple[str, ...], AdapterSet | None], Stack] = OrderedDict()
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        if runs_on(self._device, self._dtype):
            compiled(self._dtype)  # now, not when the first request waits
        self._changed: list[nn.Linear] = []
        self._applied: tuple[tuple[AdapterSet, ...], bool] | None = None

    def apply(
        self, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter], *, many_tokens: bool = False
    ) -> None:
        """Make the next forward passes use `sets[i]` for row i. `residents` holds every adapter named there.

        `many_tokens`: the passes have many tokens per row; rows of the same set should then be neighbours.
        """
        wanted = (tuple(sets), many_tokens)
        if wanted == self._applied:
            return
        self.remove()
        if any(sets):  # an empty set is the bare base
            # In this order: forms scale what the base layer alone gave.
            beside = form_hooks(sets, {digest: resident.forms for digest, resident in residents.items()})
            ranked = [tuple(part for part in one if residents[part[0]].modules) for one in sets]
            ranks = {}
            if any(ranked):
                ranks = self._ranks(ranked, residents, many_tokens)
            for name in {**beside, **ranks}:
                self._change(self._linears[name], [hooks[name] for hooks in (beside, ranks) if name in hooks])
        self._applied = wanted

    def remove(self) -> None:
        """Leave the bare base model."""
        for layer in self._changed:
            del layer.forward
        self._changed, self._applied = [], None

    def clear(self) -> None:
        """Leave the bare base model and forget all stacks."""
        self.remove()
        self._stacks.clear()

    def _change(self, layer: nn.Linear, hooks: Sequence[Hook]) -> None:
        """Let the hooks follow the layer. Those of PyTorch (`register_forward_hook`) cost 3 µs at every call, which is
        as much as the update itself for a row."""
        plain = layer.forward

        def forward(x: Tensor) -> Tensor:
            output = plain(x)
            for hook in hooks:
                hook(layer, (x,), output)
            return output

        layer.forward = forward  # type: ignore[assignment, method-assign]
        self._changed.append(layer)

    def _ranks(
        self, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter], many_tokens: bool
    ) -> dict[str, Hook]:
        if runs_on(self._device, self._dtype):
            return row_hooks(sets, residents, self._dtype)
        return self._runs(sets, residents) if many_tokens else self._stacked(sets, residents)

    def _stacked(self, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]) -> dict[str, Hook]:
        uniform = sets[0] if all(one == sets[0] for one in sets) else None
        stack = self._stack(uniform, sets, residents)
        if uniform is not None:
            return {name: _stacked_hook(factors, None) for name, factors in stack.modules.items()}
        masks = _masks(stack, sets)
        return {name: _stacked_hook(factors, masks[stack.layout_of[name]]) for name, factors in stack.modules.items()}

    def _runs(self, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]) -> dict[str, Hook]:
        runs: dict[str, list[Run]] = {}
        start = 0
        for one, members in groupby(sets):
            rows = slice(start, start + len(list(members)))
            start = rows.stop
            for digest, weight in one:
                for name, factors in residents[digest].modules.items():
                    runs.setdefault(name, []).append((rows, factors, weight))
        return {name: _run_hook(parts) for name, parts in runs.items()}

    def _stack(
        self, uniform: AdapterSet | None, sets: Sequence[AdapterSet], residents: Mapping[str, ResidentAdapter]
    ) -> Stack:
        needed = sorted({digest for one in sets for digest, _ in one})
        for key, stack in self._stacks.items():
            fits = set(needed) <= set(stack.digests) and len(stack.digests) <= 2 * len(needed)
            if stack.folded == uniform and fits:
                self._stacks.move_to_end(key)
                return stack
        while len(self._stacks) >= _KEPT_STACKS:
            self._stacks.popitem(last=False)
        stack = build_stack([residents[digest] for digest in needed], uniform)
        self._stacks[stack.digests, uniform] = stack
        return stack


def build_stack(adapters: Sequence[ResidentAdapter], folded: AdapterSet | None) -> Stack:
    """Concatenate adapters; a lone one at weight 1 is taken as it is, without a copy."""
    weights = dict(folded or ())
    modules: dict[str, ServedFactors] = {}
    layouts: dict[tuple[tuple[int, int], ...], int] = {}
    layout_of: dict[str, int] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        members = [(index, adapter) for index, adapter in enumerate(adapters) if name in adapter.modules]
        parts = [adapter.modules[name] for _, adapter in members]
        scaled = [
            part.A if weights.get(adapter.digest, 1.0) == 1.0 else part.A * weights[adapter.digest]
            for (_, adapter), part in zip(members, parts, strict=True)
        ]
        if len(parts) == 1:
            modules[name] = ServedFactors(scaled[0], parts[0].Bt)
        else:
            modules[name] = ServedFactors(torch.cat(scaled), torch.cat([part.Bt for part in parts]))
        layout = tuple((index, part.rank) for (index, _), part in zip(members, parts, strict=True))
        layout_of[name] = layouts.setdefault(layout, len(layouts))
    spread = tuple(torch.tensor([index for index, rank in layout for _ in range(rank)]) for layout in layouts)
    return Stack(tuple(adapter.digest for adapter in adapters), folded, modules, spread, layout_of)


def _masks(stack: Stack, sets: Sequence[AdapterSet]) -> list[Tensor]:
    """For each layout the mask [rows, 1, R]."""
    index = {digest: column for column, digest in enumerate(stack.digests)}
    example = next(iter(stack.modules.values())).A
    weights = torch.zeros(len(sets), len(stack.digests), dtype=torch.float64)
    for row, one in enumerate(sets):
        for digest, weight in one:
            weights[row, index[digest]] = weight
    return [weights[:, layout].unsqueeze(1).to(example.device, example.dtype) for layout in stack.layouts]


def _stacked_hook(factors: ServedFactors, mask: Tensor | None) -> Hook:
    def add_update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inner = linear(args[0], factors.A)
        if mask is not None:
            inner.mul_(mask)
        _flat(output).addmm_(_flat(inner), factors.Bt)

    return add_update


def _run_hook(runs: Sequence[Run]) -> Hook:
    def add_updates(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        for rows, factors, weight in runs:
            inner = linear(args[0][rows], factors.A)
            _flat(output[rows]).addmm_(_flat(inner), factors.Bt, alpha=weight)

    return add_updates


def _flat(tensor: Tensor) -> Tensor:
    """[rows, tokens, features] seen as [rows * tokens, features]."""
    return tensor.view(-1, tensor.shape[-1])
