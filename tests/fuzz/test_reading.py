"""Adapters broken in every way that could be thought of are read, or refused in a sentence, at a bounded cost.

The first cases of `make fuzz`, which runs a hundred thousand.
"""

from collections import Counter

from tests.fuzz.bounded import run
from tests.fuzz.mutations import case

CASES = 2000


def test_broken_adapters_cost_a_sentence() -> None:
    outcomes = list(run(0, CASES, seconds=60, memory_mib=256))
    assert [outcome for outcome in outcomes if outcome.finding] == []
    assert [outcome.number for outcome in outcomes] == list(range(CASES))
    kinds = Counter(outcome.what for outcome in outcomes)
    assert set(kinds) == {"read", "BadConfig", "BadFile", "BadTensors", "NonFiniteTensor", "NotLowRank"}
    assert kinds["read"] > CASES // 20  # some are broken in ways that do not matter, or not at all


def test_a_number_names_a_case_for_ever() -> None:
    assert case(7) == case(7)
    assert len({case(n).weights for n in range(100)}) > 90
