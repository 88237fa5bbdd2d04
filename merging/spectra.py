"""What the first pass of a merge under a budget finds out about a module, as bytes for the journal.

`exact`: the singular values of the exact weighted sum. `core`: the SVD of the method's own result in the joint bases,
for methods that work there; the second pass truncates it instead of running the method again. It is Σr square, far
smaller than the factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltas.factors import Spectrum


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSpectra:
    """Singular values [n] of the exact weighted sum; U [b, k], S [k], Vh [k, a] of the result's core. float64."""

    exact: Tensor
    core: Spectrum | None

    @property
    def filled(self) -> Tensor:
        """The singular values that ranks are bought from: the result's own where it has a core."""
        return self.exact if self.core is None else self.core.S

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """The shapes, for a record's head, and the numbers, for its payload."""
        parts = [self.exact, *(self.core or ())]
        return {"shapes": [list(part.shape) for part in parts]}, b"".join(_bytes(part) for part in parts)


def unpack(head: dict[str, Any], payload: bytes) -> ModuleSpectra:
    """What `pack` made bytes of, number for number."""
    parts: list[Tensor] = []
    start = 0
    for shape in head["shapes"]:
        parts.append(_tensor(payload, start, shape))
        start += 8 * parts[-1].numel()
    return ModuleSpectra(parts[0], Spectrum(*parts[1:]) if len(parts) > 1 else None)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _tensor(payload: bytes, start: int, shape: Sequence[int]) -> Tensor:
    count = torch.Size(shape).numel()
    piece = bytearray(payload[start : start + 8 * count])
    return torch.frombuffer(piece, dtype=torch.float64).reshape(*shape) if count else torch.zeros(*shape).double()
