"""The mean of predictions and its uncertainty: hand-worked numbers, scipy, and the laws that hold for any members."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, rel_entr
from scipy.stats import entropy
from torch import Tensor

from serving.ensemble import Uncertainty, averaged, predict, shares
from serving.errors import EnsembleWeights


@st.composite
def votes(draw: st.DrawFn) -> tuple[Tensor, tuple[float, ...]]:
    """Logits of 1 to 5 members over 2 to 7 tokens, from indifferent to certain, and their shares."""
    members, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    heat = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    numbers = st.lists(st.floats(-1, 1), min_size=members * vocabulary, max_size=members * vocabulary)
    logits = heat * torch.tensor(draw(numbers), dtype=torch.float64).view(members, vocabulary)
    return logits, shares(draw(st.lists(st.floats(0.01, 10), min_size=members, max_size=members)))


def test_numbers_worked_by_hand() -> None:
    # mean: 1/4 (1/5, 4/5) + 3/4 (9/10, 1/10) = (29/40, 11/40); the first member prefers the other token
    members = torch.tensor([[0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    found = predict(members.log(), shares([1, 3]))
    assert found.logprobs.exp().tolist() == pytest.approx([0.725, 0.275], abs=1e-12)
    first, second = 0.2 * math.log(5) + 0.8 * math.log(1.25), 0.9 * math.log(1 / 0.9) + 0.1 * math.log(10)
    whole = -0.725 * math.log(0.725) - 0.275 * math.log(0.275)
    expected = 0.25 * first + 0.75 * second
    assert found.uncertainty.entropy == pytest.approx(whole, abs=1e-12)
    assert found.uncertainty.expected_entropy == pytest.approx(expected, abs=1e-12)
    assert found.uncertainty.mutual_information == pytest.approx(whole - expected, abs=1e-12)
    assert found.uncertainty.disagreement == 0.25
    assert found.uncertainty.max_disagreement == pytest.approx(0.525, abs=1e-12)


def test_certain_members_that_contradict_each_other() -> None:
    found = predict(1e6 * torch.eye(4), shares([2, 2, 2, 2]))
    ours = found.uncertainty
    assert (ours.expected_entropy, ours.disagreement, ours.max_disagreement) == (0, 0.75, 0.75)
    assert ours.entropy == ours.mutual_information == pytest.approx(math.log(4), abs=1e-12)


def test_a_tie_with_the_means_choice_is_no_disagreement() -> None:
    found = predict(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), shares([1, 1]))
    assert found.uncertainty.disagreement == 0


@given(votes())
def test_scipy_says_the_same(vote: tuple[Tensor, tuple[float, ...]]) -> None:
    logits, weights = vote
    own = log_softmax(logits.numpy(), axis=1)
    mean = logsumexp(own, axis=0, b=np.array(weights)[:, None])
    found = predict(logits, weights)
    assert found.logprobs.numpy() == pytest.approx(mean, abs=1e-9)
    assert found.uncertainty.entropy == pytest.approx(entropy(np.exp(mean)), abs=1e-9)
    assert found.uncertainty.expected_entropy == pytest.approx(np.dot(weights, entropy(np.exp(own), axis=1)), abs=1e-9)
    divergences = rel_entr(np.exp(own), np.exp(mean)).sum(1)
    assert found.uncertainty.mutual_information == pytest.approx(np.dot(weights, divergences), abs=1e-9)


@given(votes())
def test_bounds(vote: tuple[Tensor, tuple[float, ...]]) -> None:
    logits, weights = vote
    logprobs, found = predict(logits, weights)
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert 0 <= found.expected_entropy <= found.entropy + 1e-12
    assert found.entropy <= math.log(logits.shape[1]) + 1e-12
    assert 0 <= found.mutual_information <= entropy(weights) + 1e-12
    assert found.mutual_information == pytest.approx(found.entropy - found.expected_entropy, abs=1e-12)
    assert 0 <= found.disagreement <= 1
    assert 0 <= found.max_disagreement <= 1 - min(weights) + 1e-12


@given(votes(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_nothing(vote: tuple[Tensor, tuple[float, ...]], random: Random) -> None:
    logits, weights = vote
    order = list(range(len(weights)))
    random.shuffle(order)
    one, other = predict(logits, weights), predict(logits[order], [weights[at] for at in order])
    peaks = one.logprobs.topk(2).values
    assume(float(peaks[0] - peaks[1]) > 1e-9)  # of two equally likely tokens, rounding may choose either
    assert torch.allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-9)
    for name in Uncertainty.__dataclass_fields__:
        assert getattr(one.uncertainty, name) == pytest.approx(getattr(other.uncertainty, name), abs=1e-9)


@given(votes())
def test_a_member_split_in_two_changes_nothing(vote: tuple[Tensor, tuple[float, ...]]) -> None:
    logits, weights = vote
    split = predict(torch.cat([logits, logits[:1]]), [weights[0] / 2, *weights[1:], weights[0] / 2])
    whole = predict(logits, weights)
    assert torch.allclose(split.logprobs, whole.logprobs, rtol=0, atol=1e-9)
    assert split.uncertainty.mutual_information == pytest.approx(whole.uncertainty.mutual_information, abs=1e-9)


@given(votes(), st.integers(2, 4))
def test_members_that_are_the_same_know_no_disagreement(vote: tuple[Tensor, tuple[float, ...]], count: int) -> None:
    logits = vote[0][:1]
    found = predict(logits.expand(count, -1), shares([1.0] * count))
    assert torch.allclose(found.logprobs, logits[0].log_softmax(-1), rtol=0, atol=1e-12)
    assert found.uncertainty.mutual_information == pytest.approx(0, abs=1e-12)
    assert found.uncertainty.max_disagreement == pytest.approx(0, abs=1e-12)
    assert found.uncertainty.disagreement == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens_that_are_impossible_are_no_trouble_in_any_dtype(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 0.0, -math.inf]], dtype=dtype)
    logprobs, found = predict(logits, shares([1, 1]))
    assert logprobs.exp().tolist() == pytest.approx([0.75, 0.25, 0])
    assert found.expected_entropy == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [2, -1], [1, math.nan], [1, math.inf]])
def test_weights_that_are_no_shares(weights: list[float]) -> None:
    with pytest.raises(EnsembleWeights, match="0 or more"):
        shares(weights)


def test_shares_sum_to_one() -> None:
    assert shares([3, 0, 1]) == (0.75, 0, 0.25)
    assert sum(shares([1e308 / 3] * 3)) == pytest.approx(1)


def test_an_answers_uncertainty_is_the_mean_of_its_tokens() -> None:
    assert averaged([]) is None
    assert averaged([Uncertainty(1, 2, 3, 0, 0.5), Uncertainty(3, 2, 1, 1, 0)]) == Uncertainty(2, 2, 2, 0.5, 0.25)
