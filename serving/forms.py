"""What adapters do to linear layers beside low-rank sums: scaled outputs and inputs, dense updates, biases.

For a layer y = W x + b, and weights w_i of a row's set,

    y += (Σ w_i output_i) ∘ y  +  W ((Σ w_i input_i) ∘ x)  +  Σ w_i dense_i x  +  Σ w_i bias_i

with y the base layer's own output on the right, so this comes before ranks are added (serving/lora_batch.py). A change
scales W x and not b: what it takes of b too much is given back in its bias, once, when the adapter is loaded.

Scaled outputs and biases cost a multiplication and an addition of y, for all rows at once. Scaled inputs meet the base
weight once more, and a dense update is a matrix of its own: both are computed for the rows that have them alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deltas.forms import Forms

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class ServedForms:
    """One adapter's forms at one layer, at weight 1; output, bias: [out], input: [in], dense: [out, in]."""

    output: Tensor | None
    input: Tensor | None
    dense: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """y[rows] += (x[rows] ∘ factor) @ matrixᵀ. rows: [n], None for all; factor: [n or 1, 1, in or 1]; matrix:
    [out, in], None for the base layer's own."""

    rows: Tensor | None
    factor: Tensor
    matrix: Tensor | None


def served_forms(
    forms: Forms, base_bias: Tensor | None, dtype: torch.dtype, device: torch.device
) -> ServedForms | None:
    """The forms of one layer beside its factors, cast; None if there are none. `base_bias`: [out], where it has one."""
    bias = forms.bias
    if forms.output is not None and base_bias is not None:
        returned = forms.output * base_bias.to(forms.output.device, forms.output.dtype)
        bias = -returned if bias is None else bias - returned
    if bias is not None and not bool(bias.any()):
        bias = None
    kept = [
        None if form is None else form.to(device, dtype).contiguous()
        for form in (forms.output, forms.input, forms.dense, bias)
    ]
    return None if all(form is None for form in kept) else ServedForms(*kept)


def form_hooks(
    sets: Sequence[tuple[tuple[str, float], ...]], forms: Mapping[str, Mapping[str, ServedForms]]
) -> dict[str, Hook]:
    """For each layer that needs one, the hook that applies `sets[i]` to row i. `forms`: of each adapter by digest, by
    layer; what has none may be left out."""
    named = sorted({digest for one in sets for digest, _ in one if forms.get(digest)})
    if not named:
        return {}
    rows = sets[:1] if all(one == sets[0] for one in sets) else sets
    weights = torch.tensor([[dict(one).get(digest, 0.0) for digest in named] for one in rows], dtype=torch.float64)
    layers = sorted({layer for digest in named for layer in forms[digest]})
    return {
        layer: _hook(
            *_plan({at: forms[digest][layer] for at, digest in enumerate(named) if layer in forms[digest]}, weights)
        )
        for layer in layers
    }


def _plan(members: Mapping[int, ServedForms], weights: Tensor) -> tuple[Tensor | None, Tensor | None, list[Product]]:
    """What one layer's hook does: the scale [rows or 1, 1, out] and shift of the outputs, and products. `members`: by
    their columns in weights [rows, adapters], of one row for all alike."""
    scale = _mixed({at: member.output for at, member in members.items()}, weights)
    shift = _mixed({at: member.bias for at, member in members.items()}, weights)
    products = []
    inputs = {at: member.input for at, member in members.items() if member.input is not None}
    if inputs:
        rows = _having(weights, list(inputs))
        mixed = _mixed(inputs, weights if rows is None else weights[rows])
        assert mixed is not None
        products.append(Product(_on(rows, mixed.device), mixed, None))
    for at, member in members.items():
        if member.dense is not None:
            rows = _having(weights, [at])
            factor = (weights if rows is None else weights[rows])[:, at].reshape(-1, 1, 1)
            factor = factor.to(member.dense.device, member.dense.dtype)
            products.append(Product(_on(rows, factor.device), factor, member.dense))
    return scale, shift, products


def _mixed(vectors: Mapping[int, Tensor | None], weights: Tensor) -> Tensor | None:
    """Each row's weighted sum of the vectors that there are, [rows, 1, n]."""
    present = {at: vector for at, vector in vectors.items() if vector is not None}
    if not present:
        return None
    stack = torch.stack(list(present.values()))
    shares = weights[:, list(present)].to(stack.device, stack.dtype)
    return (shares @ stack).unsqueeze(1)


def _having(weights: Tensor, columns: list[int]) -> Tensor | None:
    """The rows that have any of these adapters; None if all have."""
    found = (weights[:, columns] != 0).any(dim=1)
    return None if bool(found.all()) else found.nonzero().reshape(-1)


def _on(rows: Tensor | None, device: torch.device) -> Tensor | None:
    return None if rows is None else rows.to(device)


def _hook(scale: Tensor | None, shift: Tensor | None, products: Sequence[Product]) -> Hook:
    def apply_forms(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if scale is not None:
            output.addcmul_(output, scale)
        if shift is not None:
            output.add_(shift)
        for product in products:
            x = args[0] if product.rows is None else args[0].index_select(0, product.rows)
            update = linear(x * product.factor, module.weight if product.matrix is None else product.matrix)
            if product.rows is None:
                output.add_(update)
            else:
                output.index_add_(0, product.rows, update)

    return apply_forms
