"""Normalised accuracies and their intervals, against hand-worked numbers and the textbook."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.bootstrap import REPLICATES, estimate, replicates

RNG = np.random.default_rng


def test_normalised_accuracy_by_hand() -> None:
    # own: 1/2 and 4/4; merged: 1/2 and 3/4 -> (1 + 3/4) / 2 = 0.875
    own = {"a": [True, False], "b": [True] * 4}
    merged = {"a": [False, True], "b": [True, True, False, True]}
    assert replicates(own, {"m": merged}, RNG(0))["m"][0] == pytest.approx(0.875)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_what_answers_as_the_own_adapter_is_one_in_every_replicate_that_can_be_scored(bits: list[bool]) -> None:
    scores = replicates({"a": bits}, {"same": {"a": bits}}, RNG(1))["same"]
    assert len(scores) == 1 + REPLICATES
    assert set(np.round(scores, 9)) <= {0.0, 1.0}  # 0: a draw without a single right answer
    assert scores[0] == pytest.approx(1)


def test_the_interval_of_one_seed_is_the_binomial_one() -> None:
    # accuracy 0.7 of 400 against an own adapter that is always right: standard error sqrt(0.21 / 400) = 0.0229
    own, merged = {"a": [True] * 400}, {"a": [True] * 280 + [False] * 120}
    found = estimate([replicates(own, {"m": merged}, RNG(2))["m"]], RNG(3))
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - 1.96 * 0.0229, abs=0.006)
    assert found.high == pytest.approx(0.7 + 1.96 * 0.0229, abs=0.006)
    assert found.seeds == 1


def test_examples_are_drawn_within_their_task() -> None:
    # One task all right, the other all wrong: whatever is drawn, the mean is one half.
    own = {"a": [True] * 10, "b": [True] * 10}
    found = replicates(own, {"m": {"a": [True] * 10, "b": [False] * 10}}, RNG(4))["m"]
    assert np.allclose(found, 0.5)


def test_differences_are_paired() -> None:
    rng = RNG(5)
    plain = rng.random(200) < 0.6
    better = plain.copy()
    better[np.flatnonzero(~plain)[:6]] = True  # right wherever the other is, and on six more: +3 points
    own = {"a": [True] * 200}
    scores = replicates(own, {"plain": {"a": list(plain)}, "better": {"a": list(better)}}, RNG(6))
    apart = estimate([scores["plain"]], RNG(7))
    difference = estimate([scores["better"] - scores["plain"]], RNG(7))
    assert difference.value == pytest.approx(0.03)
    assert 0 < difference.low < 0.03 < difference.high
    assert difference.high - difference.low < (apart.high - apart.low) / 2


def test_seeds_that_disagree_widen_the_interval() -> None:
    own = {"a": [True] * 100}
    high, low = ({"a": [True] * count + [False] * (100 - count)} for count in (90, 50))
    scores = [replicates(own, {"m": one}, RNG(8))["m"] for one in (high, low)]
    found = estimate(scores, RNG(9))
    assert found.value == pytest.approx(0.7)
    assert found.low < 0.55
    assert found.high > 0.85


def test_the_same_draws_every_time() -> None:
    own, merged = {"a": [True] * 30}, {"a": [True, False] * 15}
    first, second = (replicates(own, {"m": merged}, RNG(1))["m"] for _ in range(2))
    assert np.array_equal(first, second)
    # and whoever else is in the table
    third = replicates(own, {"other": own, "m": merged}, RNG(1))["m"]
    assert np.array_equal(first, third)


def test_a_missing_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="m has 1 answers of a where 2 are needed"):
        replicates({"a": [True, True]}, {"m": {"a": [True]}}, RNG(0))
