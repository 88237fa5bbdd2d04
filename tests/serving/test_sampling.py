"""Sampling: what may be drawn, how often, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serving.constrain import Constraint
from serving.errors import InvalidSampling, TokenOutOfRange
from serving.sampling import Sampler, Sampling, draw, filtered, measured

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(torch.tensor)


def _draws(sampling: Sampling, logits: Tensor, count: int) -> list[int]:
    sampler = Sampler(sampling, logits.numel())
    return [sampler.choose(logits, int(logits.argmax())).token for _ in range(count)]


@given(LOGITS, st.floats(0.05, 5), st.integers(0, 50), st.floats(0.01, 1))
def test_filtered_is_a_distribution_over_the_most_likely(logits: Tensor, temperature: float, k: int, p: float) -> None:
    kept = filtered(logits, temperature, k, p)
    full = (logits.double() / temperature).softmax(-1)
    assert math.isclose(float(kept.sum()), 1, abs_tol=1e-9)
    chosen = kept > 0
    assert 1 <= int(chosen.sum()) <= (k or logits.numel())
    if chosen.any() and not chosen.all():
        assert full[chosen].min() >= full[~chosen].max() - 1e-12, "nothing left out is likelier than what stays"
    ratio = kept[chosen] / full[chosen]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-6), "proportions stay"


@given(LOGITS, st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: Tensor, p: float) -> None:
    full = logits.double().softmax(-1)
    chosen = filtered(logits, 1.0, 0, p) > 0
    mass = float(full[chosen].sum())
    assert mass >= p - 1e-9
    assert mass - float(full[chosen].min()) < p + 1e-9


def test_top_p_over_a_flat_large_vocabulary_looks_beyond_the_peak() -> None:
    assert int((filtered(torch.zeros(5000), 1.0, 0, 0.5) > 0).sum()) in (2500, 2501)


@given(st.integers(0, 2**31), st.floats(0.1, 3), st.integers(1, 300), st.floats(0.05, 0.99), st.floats(0.001, 1))
def test_filtered_equals_transformers(seed: int, temperature: float, k: int, p: float, min_p: float) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    theirs = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p), MinPLogitsWarper(min_p)]
    )
    expected = theirs(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(-1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(filtered(logits, temperature, k, p, min_p), expected)


@given(st.integers(0, 2**31), st.floats(0.2, 5))
def test_repetition_penalty_equals_transformers(seed: int, penalty: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    said = torch.randint(40, (6,), generator=rng).tolist()
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=penalty), 40, prompt_ids=tuple(said))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    for _ in range(8):
        logits = torch.randn(40, generator=rng, dtype=torch.float64)
        expected = int(theirs(torch.tensor([said]), logits[None].clone())[0].argmax())
        assert sampler.choose(logits, int(logits.argmax())).token == expected
        said.append(expected)


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_draw_follows_the_distribution_function(logits: Tensor, uniform: float) -> None:
    probabilities = filtered(logits, 1.0, 5)
    token = draw(probabilities, uniform)
    assert probabilities[token] > 0
    below, upto = float(probabilities[:token].sum()), float(probabilities[: token + 1].sum())
    assert below - 1e-9 <= uniform <= upto + 1e-9


def test_draws_have_the_right_frequencies() -> None:
    drawn = _draws(Sampling(seed=1), torch.tensor([0.5, 0.3, 0.2]).log(), 4000)
    assert [round(drawn.count(token) / 4000, 1) for token in range(3)] == [0.5, 0.3, 0.2]


def test_a_seed_repeats_and_no_seed_differs() -> None:
    flat = torch.zeros(1000)
    assert _draws(Sampling(seed=7), flat, 20) == _draws(Sampling(seed=7), flat, 20)
    assert _draws(Sampling(), flat, 20) != _draws(Sampling(), flat, 20)


def test_penalties_and_bias_worked_by_hand() -> None:
    logits = torch.tensor([2.0, 1.5, 1.2])
    greedy = {"temperature": 0.0}
    assert _draws(Sampling(**greedy), logits, 3) == [0, 0, 0]
    # 2.0 -> 1.4 -> (token 1: 1.5 -> 0.9) -> 1.4 -> ... each token is penalised once
    assert _draws(Sampling(**greedy, presence_penalty=0.6), logits, 4) == [0, 1, 0, 0]
    # 2.0 -> 1.4; 1.5 -> 0.9; token 0 again: 0.8; then 1.2 of token 2
    assert _draws(Sampling(**greedy, frequency_penalty=0.6), logits, 4) == [0, 1, 0, 2]
    assert _draws(Sampling(**greedy, logit_bias={2: 100, 0: -100}), logits, 2) == [2, 2]


def test_adjustments_come_in_the_documented_order() -> None:
    # bias: [2 - 1, 1, 0.5] = [1, 1, 0.5]; token 0 was said, penalty 2: [0.5, 1, 0.5]; token 1 wins
    # then token 1 was said too: [0.5, 0.5, 0.5], minus presence 0.1 for token 1 only; the first of the best wins: 0
    asked = Sampling(temperature=0, logit_bias={0: -1.0}, repetition_penalty=2.0, presence_penalty=0.1)
    sampler = Sampler(asked, 3, prompt_ids=(0,))
    assert [sampler.choose(torch.tensor([2.0, 1.0, 0.5]), 0).token for _ in range(2)] == [1, 0]


def test_min_tokens_keeps_the_end_away() -> None:
    sampler = Sampler(Sampling(temperature=0, min_tokens=2), 3, ends=frozenset({2, 0}))
    assert [sampler.choose(torch.tensor([3.0, 1.0, 2.0]), 0).token for _ in range(4)] == [1, 1, 0, 0]


@given(st.integers(0, 2**31), st.integers(0, 20))
def test_measured_is_log_softmax(seed: int, top: int) -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = logits.log_softmax(-1)
    for row, choice in enumerate(measured(logits, [3, 0, 29, 7, 7], top)):
        assert choice.logprob == pytest.approx(float(expected[row, choice.token]), abs=1e-12)
        values, ids = expected[row].topk(top)
        assert [token for token, _ in choice.top] == ids.tolist()
        assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-12)
        assert choice.logprob in [value for token, value in choice.top if token == choice.token] or top < 30


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    choice = Sampler(Sampling(temperature=0, logit_bias={2: 100}, logprobs=2), 3).choose(logits, 0)
    expected = logits.log_softmax(-1).tolist()
    assert choice.token == 2
    assert choice.logprob == pytest.approx(expected[2])
    assert [token for token, _ in choice.top] == [0, 1]
    assert [value for _, value in choice.top] == pytest.approx(expected[:2])


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"max_tokens": -1}, {"stop": ("",)}, {"presence_penalty": 2.1}, {"frequency_penalty": math.nan},
        {"logit_bias": {3: 101.0}}, {"logprobs": 21}, {"logprobs": -1}, {"seed": 2**64}, {"min_p": 1.1},
        {"min_p": math.nan}, {"repetition_penalty": 0.0}, {"repetition_penalty": math.inf}, {"prompt_logprobs": 21},
        {"min_tokens": -1}, {"min_tokens": 3, "max_tokens": 2},
        {"min_tokens": 1, "constraint": Constraint("regex", "a")},
        {"ignore_eos": True, "constraint": Constraint("regex", "a")},
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(InvalidSampling, match=next(iter(field))):
        Sampling(**field)  # type: ignore[arg-type]


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(TokenOutOfRange, match="logit_bias"):
        Sampler(Sampling(logit_bias={3: 1.0}), 3)
    with pytest.raises(TokenOutOfRange, match="stop_token_ids"):
        Sampler(Sampling(stop_token_ids=(3,)), 3)
