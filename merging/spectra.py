"""What the first pass of a merge under a budget keeps of a module, as bytes for the journal.

`exact`: the singular values of the exact weighted sum. `own`: those of the method's result, where it has a core; ranks
are bought from them. `core`: the SVD of that result, if the method gives the same one at every rank and it is small
(Σr up to 256); the second pass then truncates it instead of doing the same work again. It gets the matrices back in
the memory layout that they had, since BLAS rounds differently for another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltas.factors import Spectrum

MOST_NUMBERS = 2**17  # of a core's U and Vh: a megabyte in the journal


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSpectra:
    """Singular values [k] of the exact weighted sum and of the result; U [b, k], S [k], Vh [k, a]. float64."""

    exact: Tensor
    own: Tensor
    core: Spectrum | None

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """The shapes and layouts, for a record's head, and the numbers, for its payload."""
        parts = [self.exact, self.own, *(self.core or ())]
        turned = [part.ndim == 2 and not part.is_contiguous() for part in parts]
        pieces = [part.T if turn else part for part, turn in zip(parts, turned, strict=True)]
        head = {"shapes": [list(piece.shape) for piece in pieces], "turned": turned}
        return head, b"".join(piece.contiguous().numpy().tobytes() for piece in pieces)


def is_kept(core: Spectrum) -> bool:
    """Whether a core's SVD is small enough for the journal."""
    return core.U.numel() + core.Vh.numel() <= MOST_NUMBERS


def unpack(head: dict[str, Any], payload: bytes) -> ModuleSpectra:
    """What `pack` made bytes of, number for number."""
    parts: list[Tensor] = []
    start = 0
    for shape, turn in zip(head["shapes"], head["turned"], strict=True):
        piece = _tensor(payload, start, shape)
        start += 8 * piece.numel()
        parts.append(piece.T if turn else piece)
    return ModuleSpectra(parts[0], parts[1], Spectrum(*parts[2:]) if parts[2:] else None)


def _tensor(payload: bytes, start: int, shape: Sequence[int]) -> Tensor:
    count = torch.Size(shape).numel()
    piece = bytearray(payload[start : start + 8 * count])
    return torch.frombuffer(piece, dtype=torch.float64).reshape(*shape).clone()  # aligned as torch's own tensors are
