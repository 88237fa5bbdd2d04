"""LoRA-LEGO's invariants (arXiv 2409.16167): what it must do with identical, permuted and unmerged pieces."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.factors import Factors
from tests.merging.one_module import apply, close, dense, source, source_lists


@given(source_lists(), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_lego_of_identical_adapters_is_that_adapter(sources: list[Factors], copies: int) -> None:
    one = sources[0]
    found, merged = apply("lego", [one] * copies, [1.0] * copies, one.rank)
    close(found, dense(one))
    assert merged.details["cluster_sizes"] == [copies] * one.rank


@given(source_lists(), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_lego_of_an_adapter_and_its_permuted_copy_is_that_adapter(sources: list[Factors], seed: int) -> None:
    one = sources[0]
    order = torch.randperm(one.rank, generator=torch.Generator().manual_seed(seed))
    close(apply("lego", [one, Factors(one.A[order], one.B[:, order])], [1.0, 1.0], one.rank)[0], dense(one))


@given(source_lists(least=2))
@settings(max_examples=30, deadline=None)
def test_lego_at_all_ranks_is_the_scaled_sum(sources: list[Factors]) -> None:
    ranks = [f.rank for f in sources]
    found, _ = apply("lego", sources, [1.0] * len(sources), sum(ranks))
    scale = (sum(ranks) / len(ranks) / sum(ranks)) ** 0.5
    close(found, scale * torch.stack([dense(f) for f in sources]).sum(dim=0))


@given(source_lists(least=2), st.sampled_from(["inf", "2"]), st.sampled_from(["raw", "unit"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_lego_reweighting_never_shrinks(
    sources: list[Factors], norm: str, feature_norm: str, canonicalise: bool
) -> None:
    """The mean of the members' norms is at least the norm of their mean (triangle inequality)."""
    rank = max(f.rank for f in sources)
    options = {"norm": norm, "feature_norm": feature_norm, "canonicalise": canonicalise}
    details = apply("lego", sources, [1.0] * len(sources), rank, **options)[1].details
    assert all(factor >= 1 - 1e-9 for factor in details["reweighting_factors"])
    assert sum(details["cluster_sizes"]) == sum(f.rank for f in sources)
    assert [sum(c) for c in details["members_by_source"]] == details["cluster_sizes"]


@given(source_lists(), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_canonicalise_recognises_a_rescaled_and_flipped_copy(sources: list[Factors], seed: int) -> None:
    one = sources[0]
    rng = torch.Generator().manual_seed(seed)
    c = (torch.rand(one.rank, generator=rng) * 4 + 0.25) * torch.where(torch.rand(one.rank, generator=rng) < 0.5, -1, 1)
    copy = Factors(one.A * c[:, None], one.B / c)
    close(apply("lego", [one, copy], [1.0, 1.0], one.rank, canonicalise=True)[0], dense(one), 1e-4)


@given(source_lists(), st.data())
@settings(max_examples=40, deadline=None)
def test_lego_compresses_one_adapter(sources: list[Factors], data: st.DataObject) -> None:
    """One source at a smaller rank: every piece finds a cluster, and no rank is better used than by the SVD."""
    one = sources[0]
    k = data.draw(st.integers(1, one.rank))
    found, merged = apply("lego", [one], [1.0], k)
    assert merged.factors.rank == k
    assert sum(merged.details["cluster_sizes"]) == one.rank
    assert merged.details["r_ref"] == one.rank  # so the output is scaled up by √(r/k)
    spectrum = torch.linalg.svdvals(dense(one))
    best = float(torch.linalg.norm(spectrum[k:]))
    assert float(torch.linalg.norm(found - dense(one))) >= best - 1e-5 * float(spectrum[0])
    if k == one.rank:
        close(found, dense(one))


def test_lego_compression_drops_repeated_ranks_only() -> None:
    """Four pieces, two of them twice: at rank 2 the clusters are the copies, and only the output scale differs."""
    one = source([([1, 0, 0], [0, 1, 0]), ([0, 2, 0], [1, 0, 0]), ([1, 0, 0], [0, 1, 0]), ([0, 2, 0], [1, 0, 0])])
    found, merged = apply("lego", [one], [1.0], 2)
    assert merged.details["cluster_sizes"] == [2, 2]
    close(found, 2**0.5 * dense(one) / 2)
    close(apply("lego", [one], [1.0], 2, output_reweight=False)[0], dense(one) / 2)


def test_cancelling_pieces_do_not_explode() -> None:
    """A cluster whose members cancel has no direction to restore; its factor stays 1."""
    found, merged = apply("lego", [source([([1, 2], [1, 0])]), source([([-1, -2], [-1, 0])])], [1, 1], 1)
    assert merged.details["reweighting_factors"] == [1.0]
    assert not found.any()
