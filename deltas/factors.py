"""One module's low-rank update and its algebra.

An adapter changes a linear layer's weight W (out, in) by ΔW = B @ A. `Factors` holds the two thin matrices with every
scale already folded in. All functions are pure and none forms the dense ΔW: sums are concatenations of ranks, norms
and inner products go through rank-sized Gram matrices, singular values through QR of both sides and the SVD of the
small core.

Shapes: A [rank, in], B [out, rank], both of one floating dtype. Sums run in float64 and results come back in the
input's dtype, unless said otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltas.errors import NonFiniteTensor


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """ΔW = B @ A for one linear layer: A [rank, in], B [out, rank], scale folded in.

    Raises:
        ValueError: if A and B are not matrices of one rank.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(
                "A must be [rank, in] and B [out, rank] of one rank, found"
                f" A {list(self.A.shape)} and B {list(self.B.shape)}"
            )

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def in_features(self) -> int:
        return self.A.shape[1]

    @property
    def out_features(self) -> int:
        return self.B.shape[0]

    def to(self, dtype: torch.dtype) -> "Factors":
        """The same factors in another dtype."""
        return Factors(self.A.to(dtype), self.B.to(dtype))


class Spectrum(NamedTuple):
    """Thin SVD of ΔW in float64: U [out, k], S [k] descending, Vh [k, in], k = min(rank, in, out)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class Truncated(NamedTuple):
    """The nearest update of a smaller rank, and the share of energy ‖ΔW‖² that it leaves out (0…1)."""

    factors: Factors
    discarded_energy: float


def check_finite(factors: Factors, module: str, whose: str = "") -> None:
    """
    Raises:
        NonFiniteTensor: naming the factor of `module`, and whose it is.
    """
    for side, tensor in (("A", factors.A), ("B", factors.B)):
        # One sum is quicker than a mask, and is finite only if every entry is (or entries overflow: then look closer).
        if not math.isfinite(float(tensor.sum())):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise NonFiniteTensor(f"{module}.lora_{side}{whose}", bad, tensor.numel())


def scaled(factors: Factors, weight: float) -> Factors:
    """weight · ΔW, the weight folded into B."""
    return Factors(factors.A, factors.B * weight)


def cat(sources: Sequence[Factors]) -> Factors:
    """ΣΔW exactly, as one update whose rank is the sum of ranks (LoRA-LEGO, arXiv 2409.16167: a sum of updates is a
    concatenation of ranks).

    Raises:
        ValueError: if there is no source, or if sources differ in shape.
    """
    if not sources:
        raise ValueError("cat needs at least one update")
    return Factors(torch.cat([f.A for f in sources], dim=0), torch.cat([f.B for f in sources], dim=1))


def svd(factors: Factors) -> Spectrum:
    """Thin SVD of ΔW: QR of B and of Aᵀ, then the SVD of the rank-sized core R_B R_Aᵀ. float64."""
    Q_B, R_B = torch.linalg.qr(factors.B.double())
    Q_A, R_A = torch.linalg.qr(factors.A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Spectrum(Q_B @ U, S, Vh @ Q_A.T)


def truncate(factors: Factors, rank: int) -> Truncated:
    """The best update of at most `rank` in Frobenius norm (Eckart and Young 1936), split evenly between A and B.

    Raises:
        ValueError: if rank < 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    U, S, Vh = svd(factors)
    kept = min(rank, S.numel())
    root = S[:kept].sqrt()
    total = S.square().sum()
    lost = float(S[kept:].square().sum() / total) if total > 0 else 0.0
    dtype = factors.A.dtype
    return Truncated(Factors((root[:, None] * Vh[:kept]).to(dtype), (U[:, :kept] * root).to(dtype)), lost)


def inner(left: Factors, right: Factors) -> float:
    """Frobenius inner product ⟨ΔW₁, ΔW₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), through [rank₁, rank₂] matrices in float64."""
    return float(((left.B.double().T @ right.B.double()) * (left.A.double() @ right.A.double().T)).sum())


def norm(factors: Factors) -> float:
    """Frobenius norm ‖ΔW‖, from the triangular factors of both sides (a Gram matrix would lose half the digits)."""
    R_B = torch.linalg.qr(factors.B.double(), mode="r").R
    R_A = torch.linalg.qr(factors.A.double().T, mode="r").R
    return float(torch.linalg.norm(R_B @ R_A.T))


def balanced(factors: Factors) -> Factors:
    """The same ΔW with ‖a_j‖ = ‖b_j‖ for each rank j, and each a_j's entry of largest magnitude positive.

    Scaling (a, b) → (c·a, b/c) and flipping both signs leave ΔW unchanged; this picks one representative
    of that family. A rank whose a or b is zero contributes nothing to ΔW and becomes zero on both sides.
    """
    A, B = factors.A.double(), factors.B.double()
    norm_a = torch.linalg.vector_norm(A, dim=1)
    norm_b = torch.linalg.vector_norm(B, dim=0)
    live = (norm_a > 0) & (norm_b > 0)
    one = torch.ones_like(norm_a)
    target = (norm_a.sqrt() * norm_b.sqrt()).where(live, torch.zeros_like(one))
    peak = A.gather(1, A.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    sign = torch.where(peak < 0, -one, one)
    grow_a = sign * target / norm_a.where(live, one)
    grow_b = sign * target / norm_b.where(live, one)
    return Factors((A * grow_a[:, None]).to(factors.A.dtype), (B * grow_b).to(factors.B.dtype))
