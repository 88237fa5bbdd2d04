"""Weights and ranks that vary over the model: how they are read, what they mean for one module, their normal forms."""

import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from merging.depth import Block, block_of, count_blocks, depth_of
from merging.pattern import interpolate
from merging.ranks import rank_at as _rank_at
from merging.ranks import read_rank
from merging.recipe import ENGINE_VERSION, Recipe
from merging.weights import read_weight, weight_at

Q0, Q4, DOWN2 = (
    f"model.layers.{i}.{name}" for i, name in ((0, "self_attn.q_proj"), (4, "self_attn.q_proj"), (2, "mlp.down_proj"))
)
LAYERS = {"model.layers": 5}


def rank_at(setting: Any, module: str) -> int | float | str:
    return _rank_at(read_rank(setting), module, depth_of(module, LAYERS))  # type: ignore[arg-type]


def weight(setting: Any, module: str) -> float:
    return weight_at(read_weight(setting), module, depth_of(module, LAYERS))


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.layers.12.self_attn.q_proj", Block("model.layers", 12)),
        ("model.layers.3.mlp.experts.7.up_proj", Block("model.layers", 3)),
        ("encoder.block.2.layer.1.DenseReluDense.wi", Block("encoder.block", 2)),
        ("transformer.h.0.attn.c_attn", Block("transformer.h", 0)),
        ("down_blocks.1.attentions.0.to_q", Block("down_blocks", 1)),
        ("lm_head", None),
        ("model.embed_tokens", None),
        ("model.layers.²", None),  # a digit to str.isdigit, but no number
        ("a." + "9" * 5000, None),
    ],
)
def test_blocks_are_read_from_names(module: str, block: Block | None) -> None:
    assert block_of(module) == block


def test_depth_runs_from_the_first_block_to_the_last_of_each_stack() -> None:
    blocks = count_blocks([Q0, Q4, "encoder.block.1.q", "lm_head", "only.0.q"])
    assert blocks == {"encoder.block": 2, "model.layers": 5, "only": 1}
    depths = {m: depth_of(m, blocks) for m in (Q0, DOWN2, Q4, "encoder.block.0.q", "encoder.block.1.q", "only.0.q")}
    assert list(depths.values()) == [0.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    assert (depth_of("model.embed_tokens", blocks), depth_of("lm_head", blocks)) == (0.0, 1.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(0, 1))
def test_gradients_are_linear_interpolation(points: list[float], depth: float) -> None:
    expected = np.interp(depth, np.linspace(0, 1, len(points)), points)
    assert interpolate(points, depth) == pytest.approx(float(expected), abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_gradients_are_exact_at_both_ends(points: list[float]) -> None:
    assert (interpolate(points, 0.0), interpolate(points, 1.0)) == (points[0], points[-1])


def test_the_first_matching_rule_decides() -> None:
    rules = [
        {"filter": "layers.4.", "value": 9},
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "q_proj", "value": 5},
        {"value": 0.25},
    ]
    assert [weight(rules, m) for m in (Q0, Q4, DOWN2)] == [0.0, 9.0, 0.25]
    assert weight([0, 0.5, 0.3, 0.7, 1], DOWN2) == 0.3  # mergekit's customary five points, in the middle
    assert weight({"filter": "*", "value": 2}, Q0) == 2.0


def test_filters_are_text_not_expressions() -> None:
    assert weight([{"filter": "layers.?.self", "value": 1}, {"value": 0.5}], Q0) == 0.5
    assert weight([{"filter": "(a+)+$" * 30, "value": 1}, {"value": 0.5}], "a" * 5000) == 0.5


def test_ranks_by_depth_and_by_rule() -> None:
    assert [rank_at([4, 16], m) for m in (Q0, DOWN2, Q4)] == [4, 10, 16]
    assert [rank_at([1, 2], m) for m in (Q0, DOWN2, Q4)] == [1, 2, 2]  # 1.5 is rounded up
    assert [rank_at([0.5, 0.9], m) for m in (Q0, DOWN2, Q4)] == [0.5, pytest.approx(0.7), 0.9]
    rules = [{"filter": "mlp", "rank": "max"}, {"filter": "layers.0.", "rank": 0}, {"rank": 0.99}]
    assert [rank_at(rules, m) for m in (Q0, DOWN2, Q4)] == [0, "max", 0.99]


DIGESTS = ["a" * 64, "b" * 64]


def digest(weight: Any = 1.0, **recipe: Any) -> str:
    return Recipe(sources=[{"ref": "t/a", "weight": weight}, {"ref": "t/b"}], **recipe).digest(DIGESTS)


@pytest.mark.parametrize(
    ("weight", "same"),
    [
        (0.5, [0.5, 0.5]),
        (0.5, [{"value": 0.5}]),
        (0.5, {"value": [0.5, 0.5, 0.5]}),
        (0.5, [{"filter": "mlp", "value": 0.5}, {"filter": None, "value": 0.5}]),
        ([{"filter": "a", "value": 1}, {"value": 2}], [{"filter": "a", "value": 1.0}, {"filter": "*", "value": 2}]),
        (
            [{"filter": "a", "value": 1}, {"value": 2}],
            [{"filter": "a", "value": 1}, {"filter": "a", "value": 7}, {"value": 2}, {"filter": "b", "value": 3}],
        ),
        (
            [{"filter": "a", "value": 1}, {"value": 2}],
            [{"filter": "a", "value": 1}, {"filter": "b", "value": [2, 2]}, {"value": 2}],
        ),
    ],
)
def test_weights_that_mean_the_same_have_one_digest(weight: Any, same: Any) -> None:
    assert digest(weight) == digest(same)


FILTERS = st.one_of(st.none(), st.sampled_from(["*", "self_attn", "mlp", "layers.0.", "q_proj", "nothing"]))
NUMBERS = st.integers(-2, 2)
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=2, max_size=3))


@given(st.lists(st.fixed_dictionaries({"filter": FILTERS, "value": VALUES}), max_size=5), VALUES)
def test_the_normal_form_means_what_was_written(rules: list[dict[str, Any]], default: Any) -> None:
    """Against the rules as they stand, tried one after another."""
    written = [*rules, {"value": default}]
    for module in (Q0, DOWN2, Q4, "lm_head"):
        value = next(r["value"] for r in written if r.get("filter") in (None, "*") or r["filter"] in module)
        points = value if isinstance(value, list) else [value, value]
        expected = np.interp(depth_of(module, LAYERS), np.linspace(0, 1, len(points)), points)
        assert weight(written, module) == pytest.approx(float(expected))
    assert read_weight(read_weight(written)) == read_weight(written)


def test_weights_that_differ_have_different_digests() -> None:
    rules = [{"filter": "a", "value": 1}, {"filter": "ab", "value": 2}, {"value": 3}]
    settings: list[Any] = [0.5, [0.5, 1], [1, 0.5], rules, [rules[1], rules[0], rules[2]], [rules[0], rules[2]]]
    assert len({digest(setting) for setting in settings}) == len(settings)


def test_ranks_have_normal_forms_too() -> None:
    assert digest(rank=4) == digest(rank=[4, 4]) == digest(rank=[{"filter": "x", "rank": 4}, {"rank": 4}])
    assert digest(rank={"budget": 8}) == digest(rank={"budget": 8.0, "share": None})
    settings: list[Any] = [
        8,
        [4, 8],
        {"budget": 8},
        {"budget": 8, "share": 0.9},
        [{"filter": "x", "rank": 4}, {"rank": 8}],
    ]
    assert len({digest(rank=setting) for setting in settings}) == len(settings)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(
        sources=[
            {"ref": "t/a", "weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 2}]},
            {"ref": "t/b", "weight": [1, 2]},
        ],
        rank=[{"filter": "mlp", "rank": [2, 8]}, {"rank": "max"}],
        layers={"model.layers": 4},
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    budget = Recipe(sources=[{"ref": "t/a"}], rank={"budget": 8, "share": 0.9})
    assert Recipe.model_validate(budget.model_dump(mode="json")) == budget


@pytest.mark.parametrize(
    ("recipe", "decides"),
    [
        ({}, {"method": "sum", "params": {}, "space": "core", "rank": "max"}),
        ({"rank": 8}, {"method": "sum", "params": {}, "space": "core", "rank": 8}),
        ({"rank": 0.99, "dtype": "float16"}, {"method": "sum", "params": {}, "space": "core", "rank": 0.99}),
    ],
)
def test_plain_recipes_are_named_as_they_always_were(recipe: Any, decides: Any) -> None:
    """A version's recipe digest outlives the forms that recipes learn: no field may come in by itself."""
    sources = [{"digest": DIGESTS[0], "weight": 0.5}, {"digest": DIGESTS[1], "weight": 1.0}]
    document = {"engine": ENGINE_VERSION, "dtype": "auto", "seed": 0, "sources": sources, **decides, **recipe}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert digest(0.5, **recipe) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("much", "a weight is a number, a list of numbers"),
        (True, "a weight is a number"),
        (None, "a weight is a number"),
        ([1], "has 2 to 256 numbers, found 1"),
        ([], "has 2 to 256 numbers, found 0"),
        ([1.0] * 257, "has 2 to 256 numbers, found 257"),
        ([1, "x"], "every entry of a list of weights must be a finite number"),
        ([1, float("nan")], "must be a finite number"),
        ([1, 10**400], "must be a finite number"),
        (10**400, "a weight is a number"),
        ([{"filter": "mlp", "value": 1}], 'end them with one without a filter, such as {"value": 1}'),
        ([{"filter": "mlp", "value": float("inf")}, {"value": 1}], "must be a finite number"),
        ([{"filter": "mlp", "weight": 1}, {"value": 1}], 'every rule is written {"filter": text, "value": …}'),
        ([{"filter": "", "value": 1}, {"value": 1}], "1 to 200 characters"),
        ([{"filter": "x" * 201, "value": 1}, {"value": 1}], "1 to 200 characters"),
        ([{"filter": 3, "value": 1}, {"value": 1}], "a filter is a part of the module's name"),
        ([1, {"value": 1}], "every rule is written"),
        ([{"filter": str(i), "value": i} for i in range(70)], "at most 64 rules, found 70"),
    ],
)
def test_weights_that_cannot_be_read(setting: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Recipe(sources=[{"ref": "t/a", "weight": setting}])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("all", "a rank is a whole number"),
        ([4], "has 2 to 256 numbers, found 1"),
        ([4, 2.5], "whole numbers from 0, or shares"),
        ([0.5, 4], "whole numbers from 0, or shares"),
        ([-1, 4], "whole numbers from 0, or shares"),
        ([{"filter": "mlp", "rank": 4}], "the rules have no default"),
        ([{"filter": "mlp", "rank": -1}, {"rank": 4}], "the rank of a rule is -1"),
        ([{"filter": "mlp", "rank": 4.5}, {"rank": 4}], "the rank of a rule is 4.5"),
        ([{"filter": "mlp", "rank": "all"}, {"rank": 4}], 'the rank of a rule: a rank is a whole number, "max"'),
        ([{"filter": "mlp", "rank": {"budget": 4}}, {"rank": 4}], "the rank of a rule: a rank is a whole number"),
        ({"budget": 0}, "'budget' of a budget: input should be greater than 0"),
        ({"budget": "8"}, "'budget' of a budget: input should be a valid number"),
        ({"budget": float("nan")}, "'budget' of a budget"),
        ({"budget": 8, "share": 1}, "'share' of a budget: input should be less than 1"),
        ({"budget": 8, "least": 1}, "'least' of a budget: there is no such field"),
        ({}, "every rule is written"),
    ],
)
def test_ranks_that_cannot_be_read(setting: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Recipe(sources=[{"ref": "t/a"}], rank=setting)
