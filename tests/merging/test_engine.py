"""The engine: same bytes whatever happens on the way, finished modules never redone, PEFT loads what comes out."""

import copy
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from deltas.adapter import Adapter
from deltas.errors import NonFiniteTensor
from merging.engine import MergeResult, run_merge
from merging.errors import BadParams, MergeCancelled
from merging.journal import Journal
from merging.method import LARGEST_NUMBER, methods
from merging.plan import Plan
from merging.planning import plan_merge
from merging.recipe import Recipe
from tests.factory import TINY, write_adapter
from tests.merging.conftest import dense_deltas, open_adapter
from tests.merging.peft_models import peft_adapter, small_llama

MANY = {f"model.layers.{i}.q_proj": (24, 32) for i in range(40)}


def make_plan(folders: list[Path], **recipe: Any) -> Plan:
    sources = [{"ref": f"t/{f.name}"} for f in folders]
    return plan_merge(Recipe(sources=sources, **recipe), [open_adapter(f) for f in folders])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["sum", "lego", "linear", "cat"])
def test_bytes_do_not_depend_on_workers_or_folder(tmp_path: Path, mixed: list[Path], method: str) -> None:
    digests = {
        sha256(run_merge(make_plan(mixed, method=method), tmp_path / f"w{n}", workers=n).weights) for n in (1, 2, 4)
    }
    assert len(digests) == 1


def test_progress_counts_every_module(tmp_path: Path, mixed: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    run_merge(make_plan(mixed), tmp_path / "w", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)


def test_a_cancelled_merge_stops_between_modules_and_can_go_on(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, seed=i) for i in range(2)]
    plan = make_plan(folders)
    done: list[int] = []
    with pytest.raises(MergeCancelled):
        run_merge(plan, tmp_path / "w", on_progress=lambda d, _: done.append(d), cancelled=lambda: max(done) >= 5)
    assert 5 <= done[-1] < 40
    result = run_merge(plan, tmp_path / "w")
    assert result.report["modules_resumed"] >= 5
    assert sha256(result.weights) == sha256(run_merge(plan, tmp_path / "fresh").weights)


def merge_slowly(folders: list[Path], work: Path) -> None:
    run_merge(make_plan(folders, method="lego"), work, on_progress=lambda d, _: time.sleep(0.02))


def test_a_killed_merge_does_not_redo_finished_modules(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), MANY, rank=4, seed=i) for i in range(3)]
    work, plan = tmp_path / "w", make_plan(folders, method="lego")
    process = multiprocessing.get_context("fork").Process(target=merge_slowly, args=(folders, work))
    process.start()
    journal = work / "modules.journal"
    while not journal.exists() or journal.stat().st_size < 40_000:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = journal.read_bytes()
    result = run_merge(plan, work)
    assert 0 < result.report["modules_resumed"] < 40
    kept = before[: len(before) * 2 // 3]
    assert journal.read_bytes().startswith(kept[: kept.rfind(b'{"module"') - 8])
    assert sha256(result.weights) == sha256(run_merge(plan, tmp_path / "fresh").weights)


def test_a_record_cut_short_is_done_again(tmp_path: Path, mixed: list[Path]) -> None:
    plan, work = make_plan(mixed), tmp_path / "w"
    expected = sha256(run_merge(plan, work).weights)
    journal = work / "modules.journal"
    whole = journal.read_bytes()
    for cut in range(1, len(whole), 997):
        journal.write_bytes(whole[:-cut])
        assert sha256(run_merge(plan, work).weights) == expected
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    journal.write_bytes(flipped)
    result = run_merge(plan, work)
    assert sha256(result.weights) == expected
    assert result.report["modules_resumed"] < 3


def test_another_plans_journal_is_not_taken_over(tmp_path: Path, mixed: list[Path]) -> None:
    run_merge(make_plan(mixed, rank=2), tmp_path / "w")
    result = run_merge(make_plan(mixed, rank=3), tmp_path / "w")
    assert result.report["modules_resumed"] == 0
    assert sha256(result.weights) == sha256(run_merge(make_plan(mixed, rank=3), tmp_path / "fresh").weights)


def test_the_journal_takes_records_from_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "plan")
    threads = [
        threading.Thread(target=lambda i=i: [journal.append(f"{i}-{k}", {"k": k}, bytes([i, k])) for k in range(50)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    again = Journal(tmp_path / "j", "plan")
    assert len(again.records) == 200
    assert all(again.read(f"{i}-{k}") == bytes([i, k]) for i in range(4) for k in range(50))
    again.close()


def test_nan_in_a_source_stops_the_merge_and_names_it(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), seed=i) for i in range(2)]
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.1.q_proj.lora_B.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(NonFiniteTensor, match=r"layers\.1\.q_proj\.lora_B of 't/1'"):
        run_merge(make_plan(folders), tmp_path / "w")


def test_an_overflow_of_the_result_is_an_error_not_an_adapter(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), seed=i, size=1e4, alpha=1e4) for i in range(2)]
    with pytest.raises(NonFiniteTensor, match="of the result in float16"):
        run_merge(make_plan(folders, dtype="float16"), tmp_path / "w")
    assert not (tmp_path / "w" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", sorted(methods()))
def test_numbers_that_are_too_large_are_refused_or_named_as_the_results(tmp_path: Path, name: str) -> None:
    """Whatever the method: too large for any result is refused when planned, for this one named with its module."""
    few = {"model.layers.0.q_proj": TINY["model.layers.0.q_proj"]}
    folders = [write_adapter(tmp_path / ref, few, rank=2, seed=seed, size=9.0) for seed, ref in enumerate("ab")]
    method = methods()[name]
    numbers = [option for option, field in method.params.model_fields.items() if "float" in str(field.annotation)]
    for option in numbers:
        with pytest.raises(BadParams, match=f"'{option}'"):
            make_plan(folders, method=name, params={option: 1e308})
    for space in method.spaces:
        for option in ("", *numbers):
            params = {option: LARGEST_NUMBER} if option else {}
            sources = [{"ref": f"t/{ref}", "weight": 1.0 if option else LARGEST_NUMBER} for ref in "ab"]
            with suppress(BadParams, NonFiniteTensor):
                recipe = Recipe(sources=sources, method=name, space=space, params=params)
                run_merge(plan_merge(recipe, [open_adapter(f) for f in folders]), tmp_path / f"{space}{option}")


@pytest.mark.parametrize("held", [["proj_out"], ["proj_out", "blocks.0.proj_out"]])
def test_the_result_adapts_no_module_of_the_base_that_it_does_not_hold(tmp_path: Path, held: list[str]) -> None:
    base = dict.fromkeys(("proj_out", "blocks.0.proj_out", "blocks.1.proj_out"), (8, 6))
    folder = write_adapter(tmp_path / "a", {name: base[name] for name in held}, config={"target_modules": held})
    plan = plan_merge(Recipe(sources=[{"ref": "t/a"}]), [open_adapter(folder)], base_modules=base)
    result = run_merge(plan, tmp_path / "w")
    config = LoraConfig(target_modules=result.config["target_modules"])
    assert [name for name in base if check_target_module_exists(config, name)] == held
    assert set(Adapter.open(result.config, result.weights).modules) == set(held)


def test_the_report_equals_dense_arithmetic(mixed: list[Path], merge: Callable[..., tuple[MergeResult, Path]]) -> None:
    weights = [1.0, 0.5, -2.0]
    for method, rank in [("sum", 3), ("lego", 3), ("linear", None)]:
        result, folder = merge(mixed, weights, method=method, rank=rank)
        merged, sources = dense_deltas(folder), [dense_deltas(f) for f in mixed]
        error = total = 0.0
        for module in result.report["modules"]:
            name = module["name"]
            having = [i for i, s in enumerate(sources) if name in s]
            assert module["source_indices"] == having
            target = torch.stack([weights[i] * sources[i][name] for i in having]).sum(dim=0)
            difference = float(torch.linalg.norm(target - merged[name]))
            norm = float(torch.linalg.norm(target))
            error, total = error + difference**2, total + norm**2
            assert module["relative_error"] == pytest.approx(difference / norm, rel=1e-5)
            energy = torch.linalg.svdvals(target).square()
            share = energy.cumsum(0) / energy.sum()
            assert module["energy_at_rank"] == pytest.approx(
                float(share[min(module["rank"], len(share)) - 1]), rel=1e-6
            )
            assert module["rank_95"] == int((share < 0.95).sum()) + 1
            assert module["rank_99"] == int((share < 0.99).sum()) + 1
            for figures, i in zip(module["sources"], having, strict=True):
                dot = float((sources[i][name] * merged[name]).sum())
                own = float(torch.linalg.norm(sources[i][name]))
                assert figures["projection"] == pytest.approx(dot / own**2, abs=1e-6)
                assert figures["cosine"] == pytest.approx(dot / own / float(torch.linalg.norm(merged[name])), abs=1e-6)
                assert figures["removal"] == pytest.approx(abs(weights[i]) * own / norm, rel=1e-5)
                U, S, Vh = torch.linalg.svd(merged[name], full_matrices=False)
                k = int((1e-6 * S[0] < S).sum())
                inside = U[:, :k].T @ sources[i][name] @ Vh[:k].T
                assert figures["subspace"] == pytest.approx(float(inside.square().sum()) / own**2, abs=1e-4)
            for a, i in enumerate(having):
                for b, j in enumerate(having):
                    left, right = sources[i][name], sources[j][name]
                    cosine = float((left * right).sum() / torch.linalg.norm(left) / torch.linalg.norm(right))
                    assert module["cosine"][a][b] == pytest.approx(cosine, abs=1e-6)
                    assert 0 <= module["sign_agreement"][a][b] <= 1
        assert result.report["totals"]["relative_error"] == pytest.approx((error / total) ** 0.5, rel=1e-5)


def test_a_hundred_sources(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(i), seed=i, rank=1 + i % 3) for i in range(100)]
    result = run_merge(make_plan(folders, rank=4), tmp_path / "w", workers=2)
    deltas = [dense_deltas(f) for f in folders]
    for name in TINY:
        target = torch.stack([d[name] for d in deltas]).sum(dim=0)
        module = next(m for m in result.report["modules"] if m["name"] == name)
        optimum = torch.linalg.norm(torch.linalg.svdvals(target)[4:]) / torch.linalg.norm(target)
        assert module["relative_error"] == pytest.approx(float(optimum), rel=1e-5, abs=1e-6)
        assert "cosine" not in module  # pair matrices are in the totals alone
    assert len(result.report["totals"]["interference"]["cosine"]) == 100


def test_an_energy_share_keeps_that_share(mixed: list[Path], merge: Callable[..., tuple[MergeResult, Path]]) -> None:
    result, folder = merge(mixed, rank=0.9)
    for module in result.report["modules"]:
        assert module["energy_at_rank"] >= 0.9
        assert module["rank"] == next(k for k in range(1, 20) if _share(module["name"], k, mixed) >= 0.9 * (1 - 1e-9))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert open_adapter(folder).obstacles == ()
    assert config["r"] == config["lora_alpha"]


def _share(name: str, k: int, folders: list[Path]) -> float:
    found = [d[name] for d in map(dense_deltas, folders) if name in d]
    energy = torch.linalg.svdvals(torch.stack(found).sum(dim=0)).square()
    return float(energy[:k].sum() / energy.sum())


def test_a_module_whose_name_ends_anothers_keeps_its_own_rank(tmp_path: Path) -> None:
    blocks = {f"blocks.{i}.proj_out": (8, 8) for i in range(2)}  # as in Flux
    folders = [
        write_adapter(tmp_path / "a", {"proj_out": (6, 8), **blocks}, rank=2, seed=1),
        write_adapter(tmp_path / "b", blocks, rank=3, seed=2),
    ]
    result = run_merge(make_plan(folders), tmp_path / "m")
    config = json.dumps(result.config, sort_keys=True).encode()  # as it is published
    merged = Adapter.open(config, result.weights)
    assert {name: info.rank for name, info in merged.modules.items()} == {"proj_out": 2, **dict.fromkeys(blocks, 3)}
    assert {info.scale for info in merged.modules.values()} == {1.0}


def test_short_target_names_only_where_they_cover_the_base(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    recipe = Recipe(sources=[{"ref": "t/a"}])
    partial = {**TINY, "model.layers.1.v_proj": (4, 8)}
    config = run_merge(plan_merge(recipe, [open_adapter(folder)], partial), tmp_path / "w").config
    assert config["target_modules"] == ["q_proj", "model.layers.0.v_proj"]
    config = run_merge(plan_merge(recipe, [open_adapter(folder)], None), tmp_path / "w2").config
    assert config["target_modules"] == sorted(TINY)


# PEFT as the oracle, on a small random Llama.


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return small_llama()


def logits(model: Any, adapter: Path | None = None) -> torch.Tensor:
    tokens = torch.arange(1, 41).reshape(2, 20)
    if adapter is None:
        return model(tokens).logits.detach()
    return PeftModel.from_pretrained(copy.deepcopy(model), adapter).eval()(tokens).logits.detach()


@pytest.mark.parametrize(("method", "rank"), [("sum", "sum"), ("cat", None), ("sum", 5), ("lego", 6), ("linear", None)])
def test_peft_loads_the_result_and_computes_what_the_updates_say(
    tmp_path: Path, llama: LlamaForCausalLM, merge: Callable[..., tuple[MergeResult, Path]], method: str, rank: Any
) -> None:
    folders = [
        peft_adapter(llama, tmp_path / "p", 1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        peft_adapter(llama, tmp_path / "q", 2, r=3, lora_alpha=7, use_rslora=True, target_modules="all-linear"),
        peft_adapter(
            llama, tmp_path / "r", 3, r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 5}, alpha_pattern={"down_proj": 3}, layers_to_transform=[0, 1],
        ),
    ]  # fmt: skip
    weights = [0.5, -1.0, 2.0]
    _, folder = merge(folders, weights, method=method, rank=rank)
    merged = dense_deltas(folder)
    dense = LlamaForCausalLM(llama.config).eval()
    dense.load_state_dict(llama.state_dict())
    with torch.no_grad():
        for name, delta in merged.items():
            dense.get_submodule(name).weight += delta.float()
    torch.testing.assert_close(logits(llama, folder), logits(dense), atol=1e-4, rtol=1e-4)
    if rank == "sum" or method == "cat":
        exact = {n: 0.0 for f in folders for n in dense_deltas(f)}
        for weight, f in zip(weights, folders, strict=True):
            for name, delta in dense_deltas(f).items():
                exact[name] = exact[name] + weight * delta  # type: ignore[assignment]
        for name, delta in merged.items():
            torch.testing.assert_close(delta, exact[name], atol=1e-5, rtol=1e-5)


def test_linear_equals_pefts_linear(
    tmp_path: Path, llama: LlamaForCausalLM, merge: Callable[..., tuple[MergeResult, Path]]
) -> None:
    folders = [
        peft_adapter(llama, tmp_path / f"l{i}", i, r=4, lora_alpha=alpha, target_modules=["q_proj", "up_proj"])
        for i, alpha in enumerate((4, -5, 6))
    ]
    weights = [1.0, 0.25, -0.5]
    _, folder = merge(folders, weights, method="linear")
    wrapped = PeftModel.from_pretrained(copy.deepcopy(llama), folders[0], adapter_name="a0")
    for i in (1, 2):
        wrapped.load_adapter(folders[i], adapter_name=f"a{i}")
    wrapped.add_weighted_adapter(["a0", "a1", "a2"], weights, "merged", combination_type="linear")
    wrapped.set_adapter("merged")
    expected = wrapped.eval()(torch.arange(1, 41).reshape(2, 20)).logits.detach()
    torch.testing.assert_close(logits(llama, folder), expected, atol=1e-5, rtol=1e-5)
