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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.factors import Factors, Spectrum, balanced, inner


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Orthonormal columns Q [n, k], float64, kept as Householder reflections and a rotation.

    Most uses touch a few columns only, so forming Q would cost more than all of them together.
    """

    reflections: Tensor  # [n, R], as LAPACK's geqrf leaves them
    taus: Tensor
    rotation: Tensor  # [k, k]

    def lift(self, coordinates: Tensor) -> Tensor:
        """Q @ coordinates: [k, m] → [n, m]."""
        padded = coordinates.new_zeros(self.reflections.shape[0], coordinates.shape[1])
        padded[: self.rotation.shape[0]] = self.rotation @ coordinates
        return torch.ormqr(self.reflections, self.taus, padded)

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Qᵀ @ vectors: [n, m] → [k, m]."""
        turned = torch.ormqr(self.reflections, self.taus, vectors.contiguous(), transpose=True)
        return self.rotation.T @ turned[: self.rotation.shape[0]]


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Bases of T sources of one module and the sources seen in them, all float64.

    `left` spans the outputs, [out, b] with b = min(out, Σr); `right` the inputs, [in, a] with a = min(in, Σr). Where
    sources are many, their cores outweigh all else together: what needs one at a time, or a few rows of each, is
    offered as that.
    """

    left: Basis
    right: Basis
    sources: tuple["Projection", ...]

    @property
    def cores(self) -> Tensor:
        """All cores at once, [T, b, a]; made anew each time."""
        first = self.sources[0]
        cores = first.left.new_empty(len(self.sources), len(first.left), len(first.right))
        for core, source in zip(cores, self.sources, strict=True):
            torch.matmul(source.left, source.right.T, out=core)
        return cores

    def slices(self, entries: int) -> Iterator[Tensor]:
        """The cores' entries, row after row, in pieces [T, e] of whole rows with about `entries` columns."""
        height, width = len(self.sources[0].left), len(self.sources[0].right)
        rows = max(1, entries // width)
        for start in range(0, height, rows):
            yield torch.stack(
                [(source.left[start : start + rows] @ source.right.T).flatten() for source in self.sources]
            )

    def weighted_sum(self, weights: Sequence[float]) -> Tensor:
        """The core Σ w_t M_t, [b, a]."""
        total = torch.zeros(len(self.sources[0].left), len(self.sources[0].right), dtype=torch.float64)
        for weight, source in zip(weights, self.sources, strict=True):
            total.add_(source.core, alpha=weight)  # one after the other: equal sources cancel to exact zeros
        return total

    def norms(self) -> Tensor:
        """‖ΔW_t‖, [T]."""
        return torch.stack([torch.linalg.vector_norm(source.core) for source in self.sources])

    def lift(self, core: Spectrum, rank: int) -> Factors:
        """The update whose core has this SVD, truncated optimally to `rank`, split evenly between A and B; float64."""
        root = core.S[:rank].sqrt()
        return Factors(self.right.lift(core.Vh[:rank].T * root).T, self.left.lift(core.U[:, :rank] * root))

    def project(self, factors: Factors) -> "Projection":
        """Any update seen in these bases."""
        A, B = factors.A.double(), factors.B.double()
        left, right = self.left.coordinates(B), self.right.coordinates(A.T)
        whole = Factors(A, B)
        inside = Factors(right.T, left)
        # Pythagoras; the difference is rounding below 1e-16 of the whole, so shares of norms are right to 1e-8.
        return Projection(left, right, max(0.0, inner(whole, whole) - inner(inside, inside)))


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """An update in joint bases: core = left @ rightᵀ, and the energy ‖·‖² of the part outside them."""

    left: Tensor  # [b, rank]
    right: Tensor  # [a, rank]
    outside_energy: float

    @property
    def core(self) -> Tensor:
        return self.left @ self.right.T

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Orthonormal bases of the core's column space [b, k] and row space [a, k], numerical zeros left out."""
        Q_left, R_left = torch.linalg.qr(self.left)
        Q_right, R_right = torch.linalg.qr(self.right)
        U, S, Vh = torch.linalg.svd(R_left @ R_right.T)
        live = int((S[:1] * 1e-9 < S).sum())
        return Q_left @ U[:, :live], Q_right @ Vh[:live].T


def joint_bases(sources: Sequence[Factors]) -> Joint:
    """Joint bases and cores of `sources` (float32 or wider), each [out, in] alike.

    Raises:
        ValueError: if there is no source, or if sources differ in shape.
    """
    if not sources:
        raise ValueError("joint bases need at least one update")
    # Ranks are balanced one by one, so all sources can be balanced at once. B lies transposed in memory, as LAPACK
    # wants its columns.
    A = torch.cat([f.A for f in sources]).double()
    B = torch.cat([f.B.T for f in sources]).double().T
    even = balanced(Factors(A, B))
    left, C_B = _basis(even.B)
    right, C_A = _basis(even.A.T)
    ranks = [f.rank for f in sources]
    lefts, rights = torch.split(C_B, ranks, dim=1), torch.split(C_A, ranks, dim=1)
    return Joint(left, right, tuple(Projection(b, a, 0.0) for b, a in zip(lefts, rights, strict=True)))


def _basis(stack: Tensor) -> tuple[Basis, Tensor]:
    """The left singular vectors Q of stack [n, R] and the coordinates C = Qᵀ stack, so that stack = Q C."""
    reflections, taus = torch.geqrf(stack)
    R = reflections[: min(stack.shape)].triu()
    _, rotation = torch.linalg.eigh(R @ R.T)
    rotation = rotation.flip(1)  # eigh sorts ascending; singular vectors come largest first
    return Basis(reflections, taus, rotation), rotation.T @ R
