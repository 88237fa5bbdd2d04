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
from serving.adapter_set import AdapterSet
from serving.packed_linear import unbiased

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class ServedForms:
    """One adapter's forms at one layer, at weight 1; output, bias: [out], input: [in], dense: [out, in]."""

    output: Tensor | None
    input: Tensor | None
    dense: Tensor | None
    bias: Tensor | None

    @property
    def present(self) -> list[Tensor]:
        """Those that there are, at least one."""
        return [form for form in (self.output, self.input, self.dense, self.bias) if form is not None]


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
    """The forms of one layer beside its factors that are not zero, cast; None if there are none. `base_bias`: [out],
    where it has one."""
    bias = forms.bias
    if forms.output is not None and base_bias is not None:
        returned = forms.output * base_bias.to(forms.output.device, forms.output.dtype)
        bias = -returned if bias is None else bias - returned
    kept = [
        None if form is None or not bool(form.any()) else form.to(device, dtype).contiguous()
        for form in (forms.output, forms.input, forms.dense, bias)
    ]
    return None if all(form is None for form in kept) else ServedForms(*kept)


class _Shares:
    """Each row's weights of some adapters; of one row, where all rows have the same set. Most layers ask for the same
    adapters, so answers are kept."""

    def __init__(self, sets: Sequence[AdapterSet], digests: Sequence[str], like: Tensor) -> None:
        rows = sets[:1] if all(one == sets[0] for one in sets) else sets
        weights = [[dict(one).get(digest, 0.0) for digest in digests] for one in rows]
        self._weights = torch.tensor(weights, dtype=torch.float64).to(like.device, like.dtype)
        self._of: dict[tuple[int, ...], Tensor] = {}
        self._rows_with: dict[tuple[int, ...], Tensor | None] = {}

    def of(self, columns: tuple[int, ...]) -> Tensor:
        """[rows, columns]."""
        if columns not in self._of:
            self._of[columns] = self._weights[:, columns]
        return self._of[columns]

    def rows_with(self, columns: tuple[int, ...]) -> Tensor | None:
        """The rows that have any of these adapters; None if all have."""
        if columns not in self._rows_with:
            found = (self.of(columns) != 0).any(dim=1)
            self._rows_with[columns] = None if bool(found.all()) else found.nonzero().reshape(-1)
        return self._rows_with[columns]

    def mixed(self, vectors: Mapping[int, Tensor]) -> Tensor | None:
        """Each row's weighted sum of vectors [n], given by column: [rows, 1, n]."""
        if not vectors:
            return None
        return (self.of(tuple(vectors)) @ torch.stack(list(vectors.values()))).unsqueeze(1)


def form_hooks(sets: Sequence[AdapterSet], forms: Mapping[str, Mapping[str, ServedForms]]) -> dict[str, Hook]:
    """For each layer that needs one, the hook that applies `sets[i]` to row i. `forms`: of each adapter by digest, by
    layer; what has none may be left out."""
    digests = sorted({digest for one in sets for digest, _ in one if forms.get(digest)})
    layers: dict[str, dict[int, ServedForms]] = {}
    for column, digest in enumerate(digests):
        for layer, one in forms[digest].items():
            layers.setdefault(layer, {})[column] = one
    if not layers:
        return {}
    like = next(form for member in layers.values() for one in member.values() for form in one.present)
    shares = _Shares(sets, digests, like)
    return {layer: _hook(*_plan(members, shares)) for layer, members in layers.items()}


def _plan(members: Mapping[int, ServedForms], shares: _Shares) -> tuple[Tensor | None, Tensor | None, list[Product]]:
    """What one layer's hook does: the scale [rows or 1, 1, out] and shift of the outputs, and products."""
    scale = shares.mixed({at: one.output for at, one in members.items() if one.output is not None})
    shift = shares.mixed({at: one.bias for at, one in members.items() if one.bias is not None})
    products = []
    inputs = {at: one.input for at, one in members.items() if one.input is not None}
    if (mixed := shares.mixed(inputs)) is not None:
        rows = shares.rows_with(tuple(inputs))
        products.append(Product(rows, mixed if rows is None else mixed[rows], None))
    for at, one in members.items():
        if one.dense is not None:
            rows, weights = shares.rows_with((at,)), shares.of((at,)).unsqueeze(2)
            products.append(Product(rows, weights if rows is None else weights[rows], one.dense))
    return scale, shift, products


def _hook(scale: Tensor | None, shift: Tensor | None, products: Sequence[Product]) -> Hook:
    def apply_forms(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if scale is not None:
            output.addcmul_(output, scale)
        if shift is not None:
            output.add_(shift)
        for product in products:
            x = args[0] if product.rows is None else args[0].index_select(0, product.rows)
            x = x * product.factor
            update = unbiased(module, x) if product.matrix is None else linear(x, product.matrix)
            if product.rows is None:
                output.add_(update)
            else:
                output.index_add_(0, product.rows, update)

    return apply_forms
