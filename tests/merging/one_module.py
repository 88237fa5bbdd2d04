"""One module for tests of merge methods: sources, a method run on them as the engine runs it, dense arithmetic."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from deltas.factors import Factors, Spectrum
from deltas.joint import joint_bases
from merging.method import Merged, ModuleInputs, methods, resolve_method


def source(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Factors:
    A = torch.tensor([p[0] for p in pairs], dtype=torch.float32)
    B = torch.tensor([p[1] for p in pairs], dtype=torch.float32).T
    return Factors(A, B.contiguous())


def apply(
    name: str,
    sources: list[Factors],
    weights: Sequence[float],
    rank: int,
    seed: int = 0,
    depth: float = 0.5,
    space: str | None = None,
    **params: Any,
) -> tuple[torch.Tensor, Merged]:
    """The method on one module in space "core" or "factors", as the engine calls it; ΔW in float64 and what it gave."""
    method, options = resolve_method(name, params)
    joint = joint_bases(sources)
    rng = torch.Generator().manual_seed(seed)
    inputs = ModuleInputs(sources, list(weights), rank, rng, joint.cores, joint, depth, [1.0] * len(sources))
    outcome = method.run(space or method.space, inputs, options.model_dump())
    if (space or method.space) == "core":
        outcome = Merged(joint.lift(Spectrum(*torch.linalg.svd(outcome, full_matrices=False)), rank))
    merged: Merged = outcome
    return merged.factors.B.double() @ merged.factors.A.double(), merged


@st.composite
def source_lists(draw: st.DrawFn, least: int = 1, equal_rank: bool = False) -> list[Factors]:
    out, width = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    count = draw(st.integers(least, 4))
    rank = draw(st.integers(1, 4))
    found = []
    for seed in draw(st.lists(st.integers(0, 2**31), min_size=count, max_size=count, unique=True)):
        rng = torch.Generator().manual_seed(seed)
        r = rank if equal_rank else draw(st.integers(1, 4))
        scale = draw(st.floats(0.01, 10))
        found.append(Factors(torch.randn(r, width, generator=rng) * scale, torch.randn(out, r, generator=rng)))
    return found


def rank_for(name: str, sources: list[Factors]) -> int:
    ranks = [f.rank for f in sources]
    return sum(ranks) if methods()[name].ranks == "sum" else max(ranks)


def dense(factors: Factors) -> torch.Tensor:
    return factors.B.double() @ factors.A.double()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float(torch.linalg.norm(found - expected)) <= tolerance * (float(torch.linalg.norm(expected)) + 1e-12)


def independent(count: int, rank: int = 2, out: int = 9, width: int = 11) -> list[Factors]:
    rng = torch.Generator().manual_seed(5)
    return [
        Factors(torch.randn(rank, width, generator=rng), torch.randn(out, rank, generator=rng)) for _ in range(count)
    ]
