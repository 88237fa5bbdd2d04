"""Splits are disjoint, balanced, and another for each seed."""

from collections import Counter
from random import Random

import pytest

from benchmarks.quality.design import SIZES, Block, blocks, members
from benchmarks.quality.splits import TEST, VALIDATION, cut

PAIRS = [(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(1000)]


def test_no_input_is_in_two_parts() -> None:
    training, validation, test = cut(PAIRS, Random(0))
    assert (len(validation), len(test)) == (VALIDATION, TEST)
    assert len({*training, *validation, *test}) == len(training) + VALIDATION + TEST == len(PAIRS)


def test_labels_are_balanced_until_a_rare_one_would_run_out() -> None:
    training, validation, test = cut(PAIRS, Random(0))
    assert Counter(label for _, label in validation + test) == {"rare": 30, "common": 130}
    assert Counter(label for _, label in training)["rare"] == 70
    even = [(f"text {i}", "ab"[i % 2]) for i in range(1000)]
    _, validation, test = cut(even, Random(0))
    assert Counter(label for _, label in validation + test) == {"a": 80, "b": 80}


def test_a_seed_gives_the_same_split_and_another_seed_another() -> None:
    assert cut(PAIRS, Random(1)) == cut(PAIRS, Random(1))
    assert cut(PAIRS, Random(1))[2] != cut(PAIRS, Random(2))[2]


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        cut(PAIRS[:200], Random(0))


def test_groups_have_their_sizes_and_change_with_the_seed() -> None:
    tasks = [str(i) for i in range(8)]
    for group, size in SIZES.items():
        chosen = [members(tasks, group, seed) for seed in range(3)]
        assert {len(one) for one in chosen} == {size or 8}
        assert all(list(one) == sorted(one) for one in chosen)
        assert len(set(chosen)) == (1 if group == "all" else 3)


def test_every_block_comes_once_and_what_is_asked_for_most_first() -> None:
    found = list(blocks())
    assert found[:2] == [Block(0, kind, "seven", "methods") for kind in ("qv", "mixed")]
    assert {block.group for block in found[:6]} == {"seven"}
    assert {block.part for block in found[:18]} == {"methods"}
    assert len(found) == len(set(found)) == 3 * 3 * 3 * 2
