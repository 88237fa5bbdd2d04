"""The search for the best size finds the top of every hill, and asks no more than it needs."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.scales import MOST, climb


@given(st.integers(-MOST, MOST))
def test_the_top_of_one_hill_is_found(top: int) -> None:
    asked: list[int] = []

    def score(step: int) -> float:
        asked.append(step)
        return -abs(step - top)

    assert climb(score) == top
    assert len(asked) == len(set(asked)) <= 3 + abs(top)
    assert max(map(abs, asked)) <= MOST


def test_of_equals_the_nearest_to_the_sources_own_size_is_taken() -> None:
    assert climb(lambda _: 1.0) == 0
    assert climb(lambda step: float(step in (-1, 1))) == -1


def test_it_does_not_cross_a_valley() -> None:
    assert climb(lambda step: {0: 3.0, 1: 1.0, 2: 9.0}.get(step, 0.0)) == 0
