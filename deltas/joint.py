"""The joint bases of several updates, and their cores.

All sources of one module live in the span of their stacked factors: with orthonormal bases Q_B of [B_1 … B_T] and Q_A
of [A_1; …; A_T]ᵀ, the core M_t = Q_Bᵀ ΔW_t Q_A is at most Σr square and ΔW_t = Q_B M_t Q_Aᵀ loses nothing (Core
Space, NeurIPS 2025). Sums, inner products, truncations and the figures of a report all cost what the small cores
cost, whatever the model's width.

The bases are the left singular vectors of the stacks, as in the paper, so they do not depend on the order of the
sources. Each source is balanced first (equal norms of a_j and b_j), so they do not depend either on how a rank's
scale is split between A and B. They are found by QR, then a rotation by the eigenvectors of R Rᵀ: the rotation is
orthonormal to rounding whatever the conditioning, hence the bases are lossless.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.factors import Factors, balanced, inner


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Bases and cores of T sources of one module, all float64.

    Q_B [out, b] and Q_A [in, a] have orthonormal columns, b = min(out, Σr), a = min(in, Σr); cores [T, b, a].
    """

    Q_B: Tensor
    Q_A: Tensor
    cores: Tensor

    def lift(self, core: Tensor, rank: int) -> Factors:
        """Q_B core Q_Aᵀ truncated optimally to `rank`, split evenly between A and B; float64."""
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        root = S[:rank].sqrt()
        return Factors(root[:, None] * (Vh[:rank] @ self.Q_A.T), (self.Q_B @ U[:, :rank]) * root)

    def project(self, factors: Factors) -> tuple[Tensor, float]:
        """The core of any update in these bases, and the energy ‖·‖² of the part that lies outside them."""
        A, B = factors.A.double(), factors.B.double()
        left, right = self.Q_B.T @ B, A @ self.Q_A
        core = left @ right
        outside_B, outside_A = B - self.Q_B @ left, A - right @ self.Q_A.T
        # ΔW − Q_B core Q_Aᵀ = (B − Q_B Q_Bᵀ B) A  +  Q_B Q_Bᵀ B (A − A Q_A Q_Aᵀ): two orthogonal parts.
        # The residuals are formed explicitly, so Gram products of them lose nothing to cancellation.
        beside, across = Factors(A, outside_B), Factors(outside_A, left)
        return core, inner(beside, beside) + inner(across, across)


def joint_bases(sources: Sequence[Factors]) -> Joint:
    """Joint bases and cores of `sources` (float32 or wider), each [out, in] alike.

    Raises:
        ValueError: if there is no source, or if sources differ in shape.
    """
    if not sources:
        raise ValueError("joint bases need at least one update")
    even = [balanced(f.to(torch.float64)) for f in sources]
    Q_B, R_B = _basis(torch.cat([f.B for f in even], dim=1))
    Q_A, R_A = _basis(torch.cat([f.A for f in even], dim=0).T)
    ranks = [f.rank for f in even]
    lefts, rights = torch.split(R_B, ranks, dim=1), torch.split(R_A, ranks, dim=1)
    cores = torch.stack([left @ right.T for left, right in zip(lefts, rights, strict=True)])
    return Joint(Q_B, Q_A, cores)


def _basis(stack: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors Q of stack [n, R] and the coordinates C = Qᵀ stack, so that stack = Q C."""
    Q, R = torch.linalg.qr(stack)
    _, rotation = torch.linalg.eigh(R @ R.T)
    rotation = rotation.flip(1)  # eigh sorts ascending; singular vectors come largest first
    return Q @ rotation, rotation.T @ R
