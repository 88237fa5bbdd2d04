"""Plans and refusals: every bad recipe gets its sentence before anything is computed."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from merging.errors import (
    BadParams,
    BadRank,
    BadSpace,
    BadWeights,
    BaseMismatch,
    ModuleMismatch,
    NotMergeable,
    UnknownMethod,
)
from merging.method import merge_method, methods
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import TINY, write_adapter
from tests.merging.conftest import open_adapter

SILENT = [{"filter": "no module", "value": 1}, {"value": 0}]


def plan(folders: list[Path], weights: list[Any] | None = None, **recipe: Any) -> Plan:
    weights = weights or [1.0] * len(folders)
    sources = [{"ref": f"t/{f.name}", "weight": w} for f, w in zip(folders, weights, strict=True)]
    return plan_merge(Recipe(sources=sources, **recipe), [open_adapter(f) for f in folders])


def test_the_plan_lists_every_module_with_its_ranks(mixed: list[Path]) -> None:
    document = plan(mixed, rank=4).to_dict()
    by_name = {m["name"]: m for m in document["modules"]}
    assert by_name["model.layers.0.v_proj"]["source_ranks"] == {"t/a": 2, "t/b": 3}
    assert by_name["model.layers.1.q_proj"] == {
        "name": "model.layers.1.q_proj",
        "shape": [6, 8],
        "source_ranks": {"t/a": 2, "t/b": 3, "t/c": 4},
        "source_weights": {"t/a": 1.0, "t/b": 1.0, "t/c": 1.0},
        "depth": 1.0,
        "target_rank": 4,
    }
    assert (document["ranks_are"], document["left_out"], document["layers"]) == ("exact", [], None)
    assert "contributes no change" in document["rules"]["partial_modules"]
    assert document["total_modules"] == 3
    assert document["size_bytes"] == 4 * 4 * (14 + 12 + 14)
    assert document["dtype"] == "float32"
    assert any("1 of 3 modules are not in every source" in w for w in document["warnings"])


@pytest.mark.parametrize(("rank", "expected"), [("max", 4), ("sum", 9), (7, 7), (0.9, 6), (None, 4)])
def test_target_ranks(mixed: list[Path], rank: Any, expected: int) -> None:
    assert {m.name: m.target_rank for m in plan(mixed, rank=rank).modules}["model.layers.1.q_proj"] == expected


def test_a_module_with_few_ranks_keeps_them_and_the_plan_says_so(mixed: list[Path]) -> None:
    found = plan(mixed, rank=8)
    assert {m.name: m.target_rank for m in found.modules}["model.layers.0.v_proj"] == 5
    assert any("keep all they have" in w for w in found.warnings)


@pytest.mark.parametrize(
    ("recipe", "error", "sentence"),
    [
        ({"method": "magic"}, UnknownMethod, "no merge method 'magic'; known are average, breadcrumbs"),
        ({"params": {"density": 0.5}}, BadParams, "'density' of method 'sum': there is no such parameter"),
        ({"method": "lego", "params": {"norm": "1"}}, BadParams, "'norm' of method 'lego'"),
        ({"method": "lego", "params": {"n_init": 0}}, BadParams, "greater than or equal to 1"),
        ({"method": "lego", "params": {"r_ref": float("nan")}}, BadParams, "'r_ref'"),
        ({"space": "dense"}, BadSpace, "'sum' does not run in space 'dense'; it runs in core"),
        ({"method": "sce", "space": "factors"}, BadSpace, "it runs in core or dense"),
        ({"method": "ties", "space": "factors"}, BadRank, "layers.0.q_proj' has rank 2 in 't/a' and 3 in 't/b'"),
        ({"rank": 0}, BadRank, "smallest rank is 1"),
        ({"rank": -3}, BadRank, "smallest rank is 1"),
        ({"rank": 10}, BadRank, "add up to 9; choose an integer from 1 to 9"),
        ({"rank": 1.5}, BadRank, "a share lies between 0 and 1"),
        ({"rank": 0.0}, BadRank, "a share lies between 0 and 1"),
        ({"method": "cat", "rank": 2}, BadRank, "always gives the sum"),
        ({"method": "linear", "rank": "sum"}, BadRank, "always gives the largest"),
    ],
)
def test_bad_recipes_are_refused(mixed: list[Path], recipe: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        plan(mixed, **recipe)


@pytest.mark.parametrize(
    "weights", [[float("nan"), 1.0, 1.0], [float("inf"), 1.0, 1.0], [0.0, 0.0, 0.0], [-1e308, 1.0, 1.0]]
)
def test_bad_weights_are_refused(mixed: list[Path], weights: list[float]) -> None:
    with pytest.raises(BadWeights):
        plan(mixed, weights)


@pytest.mark.parametrize("rank", ["all", True, [4]])
def test_ranks_of_the_wrong_type(rank: Any) -> None:
    with pytest.raises(ValidationError):
        Recipe(sources=[{"ref": "a/b"}], rank=rank)


@pytest.mark.parametrize(
    ("method", "weights", "params", "error"),
    [
        ("slerp", [1.0, 1.0, 1.0], {}, BadWeights),
        ("slerp", [1.0, 1.0, [0, 1]], {}, BadWeights),  # the third has a part in the last block
        ("slerp", [1.0, -1.0, SILENT], {}, BadWeights),
        ("nuslerp", [1.0, 1.0, 1.0], {}, BadWeights),
        ("karcher", [1.0, 1.0, -1.0], {}, BadWeights),
        ("multislerp", [1.0, 1.0, -2.0], {}, BadWeights),
        ("multislerp", [1.0, [-1, 1], SILENT], {}, BadWeights),
        ("della", [1.0, 1.0, 1.0], {"density": 0.95}, BadParams),
    ],
)
def test_what_a_method_cannot_do_with_its_weights_is_refused_before_any_work(
    mixed: list[Path], method: str, weights: list[Any], params: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        plan(mixed, weights, method=method, params=params)


@pytest.mark.parametrize(("method", "least", "most"), [("sum", 0.1, 2.5), ("iso_c", 1, 4), ("ties", 2, 6)])
def test_the_memory_that_many_sources_take_is_foreseen(tmp_path: Path, method: str, least: float, most: float) -> None:
    folders = [write_adapter(tmp_path / str(i), {"layers.0.fc": (300, 400)}, rank=5, seed=i) for i in range(60)]
    cores = 8 * 60 * (60 * 5) ** 2  # every source in the basis of all
    assert least * cores < plan(folders, method=method).peak_memory_bytes < most * cores


def test_a_third_source_elsewhere_leaves_two_to_a_method_for_two(mixed: list[Path]) -> None:
    found = plan(mixed, [1.0, 1.0, SILENT], method="slerp")
    assert {len(module.sources) for module in found.modules} == {2}


def test_different_bases_are_refused_by_name(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", base="other/base")]
    with pytest.raises(BaseMismatch, match=r"'t/a' is an adapter of 'tiny/base', 't/b' of 'other/base'"):
        plan(folders)


def test_different_shapes_are_refused_by_module(tmp_path: Path) -> None:
    other = {**TINY, "model.layers.0.q_proj": (6, 9)}
    folders = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", other)]
    with pytest.raises(ModuleMismatch, match=r"layers\.0\.q_proj' maps 8 inputs to 6 outputs in 't/a', but 9 to 6"):
        plan(folders)


def test_what_is_not_plain_lora_is_refused(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", config={"use_qalora": True})]
    with pytest.raises(NotMergeable, match="'t/b' cannot be merged: QALoRA"):
        plan(folders)


def test_the_digest_names_what_decides_the_bytes() -> None:
    def digest(digests: tuple[str, ...] = ("x", "y"), **changes: Any) -> str:
        document = {"sources": [{"ref": "a/b"}, {"ref": "a/c", "weight": 2}], **changes}
        return Recipe(**document).digest(digests)

    same = digest()
    assert digest(sources=[{"ref": "other/name"}, {"ref": "a/c", "weight": 2.0}]) == same
    assert digest(rank="max") == same  # the default, spelt out
    assert digest(method="lego") == digest(method="lego", params={"norm": "inf"})
    assert digest(method="ties") == digest(method="ties", space="core") != digest(method="ties", space="dense")
    others = [digest(("y", "x")), digest(rank=4), digest(seed=1), digest(dtype="float16"), digest(method="cat")]
    assert len({same, *others}) == 1 + len(others)


def test_methods_describe_themselves() -> None:
    for name, method in methods().items():
        document = method.describe()
        assert document["name"] == name
        assert document["summary"].endswith((".", "result"))
        assert document["source"]
        assert document["params"]["additionalProperties"] is False


def test_factors_space_gives_the_sources_rank_and_says_that_it_is_approximate(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / name, rank=3, seed=i) for i, name in enumerate("ab")]
    for method in ("ties", "dare", "dare_ties", "magnitude"):
        assert methods()[method].describe()["spaces"] == ["core", "dense", "factors"]
        found = plan(folders, method=method, space="factors")
        assert {m.target_rank for m in found.modules} == {3}
        assert any(f"{method} in space 'factors' adds A's and B's apart" in w for w in found.warnings)
        with pytest.raises(BadRank, match=r"in space 'factors' always gives the largest .* \(here 3\)"):
            plan(folders, method=method, space="factors", rank=2)
    assert plan(folders, method="ties", rank=2).warnings == ()


def test_a_rule_on_factors_with_other_options_is_refused_when_it_is_written() -> None:
    def rule(cores: Any, *, density: float = 1.0) -> None:
        """Doc."""

    def apart(sources: Any, *, share: float) -> Any: ...

    with pytest.raises(TypeError, match=r"same options on factors: \['density'\]"):
        merge_method("broken", space="core", ranks="chosen", source="none", factors=apart)(rule)
    assert "broken" not in methods()


@pytest.mark.parametrize("fault", ["asks for what is not known", "an option without default", "no docstring"])
def test_a_method_that_cannot_be_called_is_refused_when_it_is_written(fault: str) -> None:
    def unknown(sources: Any, moonphase: Any) -> None:
        """Doc."""

    def bare(sources: Any, *, option: int) -> None:
        """Doc."""

    def silent(sources: Any) -> None: ...

    function = {"asks for what is not known": unknown, "an option without default": bare, "no docstring": silent}[fault]
    with pytest.raises(TypeError):
        merge_method("broken", space="factors", ranks="chosen", source="none")(function)
    assert "broken" not in methods()
