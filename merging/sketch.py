"""A fixed number of numbers that stand for an adapter's whole update, so that near adapters are found among many.

Each module's ΔW is sketched as a TensorSketch (Pham and Pagh, KDD 2013, on the outer products b_j a_jᵀ): hashes
h_B, h_A send every row and every column of ΔW to one of m places with a sign, entry (i, j) goes to place
(h_B(i) + h_A(j)) mod m. For a sum of outer products that is a circular convolution of the count sketches of b_j and
a_j, done by FFT: ΔW is never formed. The modules' sketches are added up. Hashes depend on the module's name and shape
alone. (Adding up over modules and taking cosines of the sketches is ours.)

The sketch S is linear in ΔW, whatever its rank or factors, so adapters of different ranks and targets can be compared,
and another factorisation of the same update has the same sketch. E ⟨S x, S y⟩ = ⟨x, y⟩ over the hashes; over many
modules the cosine of two sketches has a standard deviation of about (1 − cos²) / √m; a single module of rank one may
have up to three times as much.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.factors import Factors

FORMAT = 1  # stored with every sketch: raised when the same adapter would get another one
SIZE = 512
STD_ERROR = SIZE**-0.5
SKETCH_BYTES = 4 * SIZE


class Near(NamedTuple):
    """One sketch that resembles the one asked for."""

    name: str
    cosine: float  # as estimated from the sketches


def sketch(adapter: Adapter) -> bytes:
    """The adapter's sketch: 512 little-endian float32. Scaled to length 1, since only cosines are asked of it; a zero
    update gives zeros.

    Raises:
        NotLowRank: if the adapter's updates cannot be read as factors.
        NonFiniteTensor: if these hold NaN or Inf.
    """
    total = torch.zeros(SIZE // 2 + 1, dtype=torch.complex128)
    for name in adapter.modules:
        total += _spectrum(name, adapter.factors(name))
    found = torch.fft.irfft(total, n=SIZE)
    norm = float(torch.linalg.norm(found))
    raw: bytes = (found / norm if norm > 0 else found).numpy().astype("<f4").tobytes()
    return raw


def nearest(asked: bytes, batches: Iterable[tuple[Sequence[str], bytes]], count: int) -> list[Near]:
    """The `count` names whose sketches have the cosine of largest magnitude with `asked`, most alike first.

    `batches`: names, and their sketches one after the other. One matrix product a batch; only the best are kept.
    """
    query = np.frombuffer(asked, dtype="<f4")
    best: list[Near] = []
    for names, data in batches:
        cosines = np.frombuffer(data, dtype="<f4").reshape(len(names), SIZE) @ query
        leading = np.argsort(-np.abs(cosines), kind="stable")[:count]
        best += [Near(names[i], float(cosines[i])) for i in leading]
        best = sorted(best, key=lambda near: -abs(near.cosine))[:count]
    return best


def _spectrum(module: str, factors: Factors) -> Tensor:
    """The Fourier transform of one module's sketch, [m/2 + 1] complex128."""
    left = torch.fft.rfft(_count_sketch(module, "B", factors.B.T.double()))
    right = torch.fft.rfft(_count_sketch(module, "A", factors.A.double()))
    product: Tensor = left * right
    return product.sum(dim=0)


def _count_sketch(module: str, side: str, rows: Tensor) -> Tensor:
    """rows [rank, n] → [rank, m]: every column is sent to its place with its sign, both hashed from the name."""
    width = rows.shape[1]
    raw = hashlib.shake_128(f"spolia sketch {FORMAT}:{module}:{side}:{width}".encode()).digest(2 * width)
    hashes = np.frombuffer(raw, dtype="<u2").astype(np.int64)
    places = torch.from_numpy(hashes % SIZE)
    signs = torch.from_numpy(1.0 - 2.0 * (hashes >> 15))
    return rows.new_zeros(rows.shape[0], SIZE).index_add_(1, places, rows * signs)
