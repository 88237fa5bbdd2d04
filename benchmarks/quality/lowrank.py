"""Low-rank updates beside a model's linear layers, exchanged without touching its weights.

The model is in bfloat16 and a small update folded into bfloat16 weights would be rounded away; beside them it is
computed in float32, as PEFT does.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from deltas.adapter import Adapter
from deltas.factors import Factors

Update = Mapping[str, Factors]
"""Module name → its factors, scale folded in."""


def update_of(adapter: Adapter) -> dict[str, Factors]:
    """All modules of an adapter."""
    return {name: adapter.factors(name) for name in adapter.modules}


def norm(update: Update) -> float:
    """Frobenius norm over all modules together, from the Gram matrices of the factors, in float64."""
    total = 0.0
    for factors in update.values():
        A, B = factors.A.double(), factors.B.double()
        total += float(((A @ A.T) * (B.T @ B)).sum())
    return math.sqrt(max(total, 0.0))


class Slots:
    """A model whose linear layers take an update; one at a time, for the whole model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._update: dict[str, tuple[Tensor, Tensor]] = {}
        self._known = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        for name in self._known:
            model.get_submodule(name).register_forward_hook(partial(self._add, name))

    def use(self, update: Update, scale: float = 1.0) -> None:
        """From now on the model computes with `scale` × `update`; {} gives the base.

        Raises:
            KeyError: if the model has no linear layer of that name.
        """
        if unknown := update.keys() - self._known:
            raise KeyError(f"the model has no linear layer {min(unknown)}")
        self._update = {name: (one.A.float(), one.B.float() * scale) for name, one in update.items()}

    def _add(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        found = self._update.get(name)
        if found is None:
            return None
        A, B = found
        return (output.float() + inputs[0].float() @ A.T @ B.T).to(output.dtype)
