"""Does an update change anything?

ΔW = B A is nothing when B was never trained, when its factors vanish in the dtype that they are kept in, or when its
ranks cancel. Found out by applying it to a random vector: what is left must be more than rounding.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def has_effect(A: Tensor, B: Tensor) -> bool:
    """Whether B A (A [rank, in], B [out, rank], finite, of one floating dtype) changes anything in that dtype.

    It does if it is more than float64 rounding of zero, and large enough for its dtype to tell from zero.
    """
    dtype = A.dtype
    A, B = A.double(), B.double()
    probe = torch.randn(A.shape[1], dtype=A.dtype, device=A.device, generator=_seeded(A.device))
    change = B @ (A @ probe)
    largest = B.abs() @ (A.abs() @ probe.abs())
    rounding = torch.finfo(A.dtype).eps * (A.shape[0] + A.shape[1])
    return bool(((change.abs() > rounding * largest) & (change.to(dtype) != 0)).any())


def silence(factors: Iterable[tuple[Tensor, Tensor]]) -> str | None:
    """Why updates (A [rank, in], B [out, rank] of each module) change nothing, as half a sentence; None if one does.

    Looks no further than the first that does, which for almost every adapter is the first of all.
    """
    modules = zero_B = zero_A = 0
    for A, B in factors:
        if has_effect(A, B):
            return None
        modules += 1
        zero_B += not bool(B.any())
        zero_A += not bool(A.any())
    if not modules:
        return "it has no factors"
    if zero_B == modules:
        return f"B is zero in all {modules} modules, as if never trained"
    if zero_A == modules:
        return f"A is zero in all {modules} modules"
    if zero_A + zero_B:
        return f"A, B or their product is zero in all {modules} modules"
    return f"the ranks of A and B cancel, or their product is too small, in all {modules} modules"


def _seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
