"""Merges whose weights and ranks vary over the model, against dense float64 arithmetic, PEFT and their plans."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from merging.engine import MergeResult, run_merge
from merging.errors import BadRank, BadWeights
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import write_adapter
from tests.merging.conftest import dense_deltas, open_adapter
from tests.merging.one_module import close

DEPTH = 5
SHAPES = {
    f"model.layers.{i}.{name}": shape
    for i in range(DEPTH)
    for name, shape in (("self_attn.q_proj", (6, 8)), ("mlp.down_proj", (8, 20)))
}
ATTENTION = {name: shape for name, shape in SHAPES.items() if "self_attn" in name}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two adapters of the whole model, and one of its attention alone."""
    return [
        write_adapter(tmp_path / "a", SHAPES, rank=2, seed=1),
        write_adapter(tmp_path / "b", SHAPES, rank=3, seed=2, use_rslora=True, dtype=torch.bfloat16),
        write_adapter(tmp_path / "c", ATTENTION, rank=1, seed=3),
    ]


def make_plan(folders: list[Path], weights: list[Any], base: Any = None, **recipe: Any) -> Plan:
    sources = [{"ref": f"t/{f.name}", "weight": w} for f, w in zip(folders, weights, strict=True)]
    return plan_merge(Recipe(sources=sources, **recipe), [open_adapter(f) for f in folders], base)


def lay_out(result: MergeResult) -> Path:
    folder = result.weights.parent
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    return folder


def weighted(folders: list[Path], weights: Mapping[str, list[float]]) -> dict[str, torch.Tensor]:
    """Σ w_t ΔW_t by the definition; `weights[module]` are the sources' there."""
    deltas = [dense_deltas(f) for f in folders]
    return {
        name: torch.stack([w * d[name] for w, d in zip(ws, deltas, strict=True) if name in d]).sum(dim=0)
        for name, ws in weights.items()
    }


VARYING: list[Any] = [
    [0, 1],
    [{"filter": "mlp", "value": 0.5}, {"value": [2, -2, 4]}],
    [{"filter": "q_proj", "value": -1}, {"value": 9}],
]


def expected_weights(name: str) -> list[float]:
    """What VARYING means, worked by hand: blocks 0 … 4 are at depth 0, 1/4, 1/2, 3/4, 1."""
    block = int(name.split(".")[2])
    return [block / 4, 0.5 if "mlp" in name else [2, 0, -2, 1, 4][block], -1.0]


@pytest.mark.parametrize("method", ["sum", "cat"])
def test_the_result_is_the_sum_with_each_modules_weights(tmp_path: Path, folders: list[Path], method: str) -> None:
    result = run_merge(make_plan(folders, VARYING, method=method, rank="sum"), tmp_path / "w")
    found = dense_deltas(lay_out(result))
    expected = weighted(folders, {name: expected_weights(name) for name in SHAPES})
    assert set(found) == set(SHAPES)
    for name, delta in found.items():
        close(delta, expected[name])
    assert result.report["totals"]["relative_error"] < 1e-6


def test_the_report_uses_each_modules_weights(tmp_path: Path, folders: list[Path]) -> None:
    report = run_merge(make_plan(folders, VARYING, rank=2), tmp_path / "w").report
    deltas = [dense_deltas(f) for f in folders]
    target = weighted(folders, {name: expected_weights(name) for name in SHAPES})
    parts, whole = [0.0, 0.0, 0.0], 0.0
    for module in report["modules"]:
        name = module["name"]
        norm = float(torch.linalg.norm(target[name]))
        whole += norm**2
        assert module["target_norm"] == pytest.approx(norm, rel=1e-6)
        wanted = [expected_weights(name)[i] for i in module["source_indices"]]
        assert module["weights"] == wanted
        for figures, i, weight in zip(module["sources"], module["source_indices"], wanted, strict=True):
            own = abs(weight) * float(torch.linalg.norm(deltas[i][name]))
            parts[i] += own**2
            assert figures["removal"] == pytest.approx(own / norm, rel=1e-6)
    for source, part in zip(report["totals"]["sources"], parts, strict=True):
        assert source["removal"] == pytest.approx((part / whole) ** 0.5, rel=1e-6)
    assert report["weights"] == make_plan(folders, VARYING).recipe.weights


def test_where_a_varying_weight_is_zero_the_source_is_not_there(tmp_path: Path, folders: list[Path]) -> None:
    """Attention from one, the rest from the other: as if each had been trained on its part alone."""
    a, b = folders[:2]
    weights: list[Any] = [
        [{"filter": "self_attn", "value": 1}, {"value": 0}],
        [{"filter": "mlp", "value": 1}, {"value": 0}],
    ]
    plan = make_plan([a, b], weights, method="tsv_m", rank=2)
    assert {m.name: m.sources for m in plan.modules} == {n: (0,) if "self_attn" in n else (1,) for n in SHAPES}
    found, first, second = dense_deltas(lay_out(run_merge(plan, tmp_path / "w"))), dense_deltas(a), dense_deltas(b)
    for name in ATTENTION:
        close(found[name], first[name], 1e-5)
    for name in set(SHAPES) - set(ATTENTION):
        spectrum = torch.linalg.svdvals(second[name])
        assert torch.linalg.svdvals(found[name])[:2] == pytest.approx(spectrum[:2], rel=1e-5)


def test_a_module_that_no_source_is_left_in_is_left_out(tmp_path: Path, folders: list[Path]) -> None:
    nowhere: Any = [{"filter": "layers.2.mlp", "value": 0}, {"value": 1}]
    plan = make_plan(folders, [nowhere, nowhere, 1])
    document = plan.to_dict()
    assert document["left_out"] == ["model.layers.2.mlp.down_proj"]
    assert document["total_modules"] == len(SHAPES) - 1
    assert any("1 modules are left out" in warning for warning in document["warnings"])
    folder = lay_out(run_merge(plan, tmp_path / "w"))
    assert set(open_adapter(folder).modules) == set(SHAPES) - {"model.layers.2.mlp.down_proj"}


def test_the_plan_shows_the_weights_and_ranks_of_each_module(folders: list[Path]) -> None:
    rank = [{"filter": "mlp", "rank": [0, 4]}, {"filter": "layers.0.", "rank": 0.9}, {"rank": 2}]
    document = make_plan(folders, VARYING, rank=rank).to_dict()
    modules = {module["name"]: module for module in document["modules"]}
    for name, module in modules.items():
        wanted = dict(zip(["t/a", "t/b", "t/c"], expected_weights(name), strict=True))
        shown = {ref: w for ref, w in wanted.items() if w and (ref != "t/c" or "self_attn" in name)}
        assert module["source_weights"] == shown
        assert module["depth"] == int(name.split(".")[2]) / 4
    assert [modules[f"model.layers.{i}.mlp.down_proj"]["target_rank"] for i in range(5)] == [0, 1, 2, 3, 4]
    assert [modules[f"model.layers.{i}.self_attn.q_proj"]["target_rank"] for i in range(3)] == [4, 2, 2]
    assert document["ranks_are"] == "at most"
    assert document["layers"] == {"model.layers": 5}
    assert [source["weight"] for source in document["sources"]] == make_plan(folders, VARYING).recipe.weights
    assert document["sources"][0]["mean_weight"] == pytest.approx(0.5)
    assert any("1 modules have rank 0" in warning for warning in document["warnings"])
    json.dumps(document)


def test_a_filter_that_matches_nothing_is_said(folders: list[Path]) -> None:
    weights: list[Any] = [[{"filter": "mpl", "value": 0.5}, {"value": 1}], 1, 1]
    plan = make_plan(folders, weights, rank=[{"filter": "k_proj", "rank": 3}, {"rank": 2}])
    said = [warning for warning in plan.warnings if "its rule decides nothing" in warning]
    assert [word for word in ("'mpl'", "'k_proj'") if any(word in warning for warning in said)] == ["'mpl'", "'k_proj'"]


@pytest.mark.parametrize(
    ("weights", "recipe", "error", "sentence"),
    [
        ([[0, 1], 1, float("nan")], {}, BadWeights, "the weight of 't/c' is nan"),
        ([[{"filter": "nothing", "value": 1}, {"value": 0}]] * 3, {}, BadWeights, "zero in every module"),
        ([1, 1, 1], {"rank": [{"filter": "nothing", "rank": 1}, {"rank": 0}]}, BadRank, "every module gets rank 0"),
        ([1, 1, 1], {"rank": [2, 4], "method": "cat"}, BadRank, "always gives the sum"),
        (
            [1, 1, 1],
            {"rank": [{"filter": "mlp", "rank": 2}, {"rank": 3}], "method": "linear"},
            BadRank,
            "always gives the largest",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    folders: list[Path], weights: list[Any], recipe: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        make_plan(folders, weights, **recipe)


# How deep the model is: the base's to say, and part of what the recipe means.


def test_depth_is_the_bases_where_it_is_known(folders: list[Path]) -> None:
    deeper = {f"model.layers.{i}.self_attn.q_proj": (6, 8) for i in range(9)}
    alone, known = make_plan(folders, [[0, 1], 1, 1]), make_plan(folders, [[0, 1], 1, 1], deeper)
    assert (alone.recipe.layers, known.recipe.layers) == ({"model.layers": 5}, {"model.layers": 9})
    last = {plan.modules[-1].depth for plan in (alone, known)}
    assert last == {1.0, 0.5}
    digests = ["a", "b", "c"]
    assert alone.recipe.digest(digests) != known.recipe.digest(digests)
    again = plan_merge(known.recipe, known.adapters)  # without the base: the recipe remembers
    assert [m.weights for m in again.modules] == [m.weights for m in known.modules]
    assert again.recipe == known.recipe


def test_a_recipe_that_does_not_ask_for_depth_does_not_depend_on_it(folders: list[Path]) -> None:
    rules: Any = [{"filter": "mlp", "value": 0.5}, {"value": 1}]
    assert make_plan(folders, [rules, 1, 1], rank=2).recipe.layers is None
    assert make_plan(folders, [1, 1, 1], method="lines").recipe.layers == {"model.layers": 5}


def test_lines_is_the_sum_under_a_gradient_of_weights(tmp_path: Path, folders: list[Path]) -> None:
    lines = run_merge(
        make_plan(folders, [1, 1, 1], method="lines", params={"alpha": 0.25, "beta": 0.5}), tmp_path / "w"
    )
    gradient = run_merge(make_plan(folders, [[0.25, 0.75]] * 3), tmp_path / "v")
    found, expected = dense_deltas(lay_out(lines)), dense_deltas(lay_out(gradient))
    for name in SHAPES:
        close(found[name], expected[name], 1e-5)


# Ranks that vary: what is written, and what PEFT makes of it.


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(1, 41).reshape(2, 20)).logits.detach()
    return found


def trained(model: LlamaForCausalLM, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=2 + seed, lora_alpha=8, target_modules="all-linear")
    wrapped = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "rank",
    [
        [1, 5],
        [{"filter": "mlp", "rank": 0}, {"filter": "layers.1.", "rank": "max"}, {"rank": [0, 1, 4]}],
        [{"filter": "v_proj", "rank": 0.9}, {"rank": 1}],
        {"budget": 0.3},
        {"budget": 2, "share": 0.8},
    ],
)
def test_peft_loads_what_has_other_ranks_in_every_module(tmp_path: Path, llama: LlamaForCausalLM, rank: Any) -> None:
    adapters = [trained(llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    base = {name: tuple(m.weight.shape) for name, m in llama.named_modules() if isinstance(m, torch.nn.Linear)}
    result = run_merge(make_plan(adapters, [[0.5, 1], -0.5], base, rank=rank), tmp_path / "w")
    folder = lay_out(result)
    ranks = {module["name"]: module["rank"] for module in result.report["modules"]}
    assert {name: m.rank for name, m in open_adapter(folder).modules.items()} == {n: r for n, r in ranks.items() if r}
    assert len(set(ranks.values())) > 1
    dense = copy.deepcopy(llama)
    with torch.no_grad():
        for name, delta in dense_deltas(folder).items():
            dense.get_submodule(name).weight += delta.float()
    loaded = PeftModel.from_pretrained(copy.deepcopy(llama), folder).eval()
    torch.testing.assert_close(logits(loaded), logits(dense), atol=1e-4, rtol=1e-4)
    tensors = [name for name, _ in loaded.named_parameters() if "lora_" in name]
    assert len(tensors) == len(load_file(folder / "adapter_model.safetensors"))  # none that the file does not hold


def test_what_is_lost_with_a_module_of_rank_zero_is_counted(tmp_path: Path, folders: list[Path]) -> None:
    rank = [{"filter": "mlp", "rank": 0}, {"rank": "sum"}]
    report = run_merge(make_plan(folders, [1, 1, 1], rank=rank), tmp_path / "w").report
    target = weighted(folders, {name: [1.0, 1, 1] for name in SHAPES})
    energy = {name: float(delta.square().sum()) for name, delta in target.items()}
    lost = sum(value for name, value in energy.items() if "mlp" in name) / sum(energy.values())
    assert report["totals"]["relative_error"] == pytest.approx(lost**0.5, rel=1e-6)
    gone = [module for module in report["modules"] if "mlp" in module["name"]]
    assert all((m["rank"], m["relative_error"], m["energy_at_rank"]) == (0, pytest.approx(1.0), 0.0) for m in gone)


# A hundred sources of mixed ranks, targets and dtypes.


def test_a_hundred_sources_of_every_kind(tmp_path: Path) -> None:
    names = sorted(SHAPES)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    folders = [
        write_adapter(
            tmp_path / str(i),
            {name: SHAPES[name] for k, name in enumerate(names) if (i + k) % 3},  # each lacks a third of the modules
            rank=1 + i % 4, alpha=2.0 + i % 5, use_rslora=i % 2 == 0, dtype=dtypes[i % 3], seed=i,
        )
        for i in range(100)
    ]  # fmt: skip
    weights: list[Any] = [[0.2, 1.0] if i % 2 else 0.5 - i / 100 for i in range(100)]
    plan = make_plan(folders, weights, rank={"budget": 4})
    assert all(60 < len(module.sources) < 70 for module in plan.modules)
    result = run_merge(plan, tmp_path / "w", workers=2)
    deltas = [dense_deltas(f) for f in folders]
    for module in result.report["modules"]:
        name = module["name"]
        depth = int(name.split(".")[2]) / 4
        numbers = [0.2 + 0.8 * depth if i % 2 else 0.5 - i / 100 for i in range(100)]
        target = torch.stack([w * d[name] for w, d in zip(numbers, deltas, strict=True) if name in d]).sum(dim=0)
        optimum = torch.linalg.norm(torch.linalg.svdvals(target)[module["rank"] :]) / torch.linalg.norm(target)
        assert module["relative_error"] == pytest.approx(float(optimum), rel=1e-5, abs=1e-6)
    assert result.report["budget"]["spent"] <= result.report["budget"]["parameters"]
    assert len(result.report["totals"]["sources"]) == 100
