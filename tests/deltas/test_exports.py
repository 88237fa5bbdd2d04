"""Exports in PEFT's form: PEFT loads them, they compute what the original does, and their own runtime accepts them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, MissConfig, PeftModel, VeraConfig
from safetensors.torch import load_file
from torch import Tensor

from deltas.adapter import Adapter
from deltas.architecture import Architecture, read_architecture
from deltas.errors import NotExportable, UnknownRuntime
from deltas.exporting.export import Export, export_for
from deltas.runtime import Facts, resolve_runtime
from tests.deltas.llama_shapes import BASE, LINEARS, QV, biased, opened
from tests.deltas.peft_model import Saved, saved, tiny_llama

PEFT_FORMS = ["sglang", "tgi", "vllm"]
TARGETS = ["q_proj", "v_proj", "down_proj"]
PATTERNS = {"rank_pattern": {"layers.0.self_attn.q_proj": 5}, "alpha_pattern": {"layers.1.mlp.down_proj": 1.5}}
KINDS: dict[str, Any] = {
    "plain": LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS),
    "rslora": LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, use_rslora=True),
    "patterns": LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, **PATTERNS),
    "some layers": LoraConfig(r=2, target_modules=TARGETS, layers_to_transform=[1]),
    "regex": LoraConfig(r=2, target_modules=r".*\.1\..*(q|v)_proj"),
    "pissa": LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="olora"),
    "adalora": AdaLoraConfig(init_r=3, target_r=3, total_step=10, tinit=1, tfinal=1, target_modules=TARGETS),
    "miss": MissConfig(r=2, target_modules=TARGETS),
    "loha": LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
    "vera": VeraConfig(r=3, target_modules=["q_proj"]),
}


def logits(found: Saved, folder: Path) -> Tensor:
    """What PEFT makes of an adapter folder on the same base."""
    model = PeftModel.from_pretrained(tiny_llama(), folder).eval()
    with torch.no_grad():
        scores: Tensor = model(torch.arange(12).reshape(2, 6)).logits
    return scores


def architecture(found: Saved) -> Architecture:
    model = tiny_llama()
    modules = {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    base = read_architecture("tiny/base", found.base, modules)
    assert base is not None
    return base


def reopened(export: Export) -> Adapter:
    return Adapter.open(export.folder / "adapter_config.json", export.folder / "adapter_model.safetensors")


@pytest.mark.parametrize("target", PEFT_FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_with_an_export(tmp_path: Path, kind: str, target: str) -> None:
    found = saved(tmp_path, KINDS[kind])
    base = architecture(found)
    adapter = found.open()
    export = export_for(adapter, target, tmp_path / "export", base=base)
    torch.testing.assert_close(
        logits(found, export.folder), logits(found, found.adapter), atol=1e-5, rtol=1e-5, check_dtype=True
    )
    assert export.energy_lost == 0
    # its own runtime has nothing to say against what was made for it
    verdict = resolve_runtime(target).verdict(Facts(reopened(export), base))
    assert verdict.loads_unchanged, verdict.reasons
    config = json.loads((export.folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == export.rank == max(info.rank for info in adapter.modules.values())


def test_peft_warns_of_nothing_missing(tmp_path: Path) -> None:
    """PEFT, told to load an export, finds every factor that its config announces, and no other."""
    found = saved(tmp_path, KINDS["some layers"])
    for target in PEFT_FORMS:
        export = export_for(found.open(), target, tmp_path / target, base=architecture(found))
        model = PeftModel.from_pretrained(tiny_llama(), export.folder)
        wanted = {key.replace(".default", "") for key in model.state_dict() if "lora_" in key}
        assert wanted == set(load_file(export.folder / "adapter_model.safetensors"))


@given(data=st.data())
def test_an_export_holds_the_same_update_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any ranks, alphas, rsLoRA, dtypes, modules: ΔW stays, fillers are zero, a second export has the same bytes."""
    room = tmp_path_factory.mktemp("law")
    names = data.draw(st.lists(st.sampled_from(sorted(QV)), min_size=1, unique=True))
    ranks = {name: data.draw(st.integers(1, 4)) for name in names}
    alphas = {name: data.draw(st.floats(0.25, 8)) for name in names}
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    adapter = opened(
        room / "in", {name: QV[name] for name in names}, rank=3, rank_pattern=ranks, alpha_pattern=alphas, dtype=dtype,
        use_rslora=data.draw(st.booleans()), config={"target_modules": names},
    )  # fmt: skip
    target = data.draw(st.sampled_from(PEFT_FORMS))
    export = export_for(adapter, target, room / "out", base=BASE)
    made = reopened(export)
    assert resolve_runtime(target).verdict(Facts(made, BASE)).loads_unchanged
    for name, info in made.modules.items():
        factors = made.factors(name)
        found = factors.B.double() @ factors.A.double()
        expected = torch.zeros_like(found)
        if name in adapter.modules:
            original = adapter.factors(name)
            expected = original.B.double() @ original.A.double()
        assert info.rank == export.rank
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert set(adapter.modules) <= set(made.modules)
    again = export_for(adapter, target, room / "again", base=BASE)
    for file in export.files:
        assert (export.folder / file).read_bytes() == (again.folder / file).read_bytes()


def test_a_smaller_rank_is_the_best_one_and_its_price_is_stated(tmp_path: Path) -> None:
    adapter = opened(tmp_path / "in", rank=4, alpha=6.0)
    export = export_for(adapter, "vllm", tmp_path / "out", base=BASE, max_rank=2)
    made = reopened(export)
    total = lost = 0.0
    for name in QV:
        original, cut = adapter.factors(name), made.factors(name)
        delta = original.B.double() @ original.A.double()
        spectrum = torch.linalg.svdvals(delta).square()
        error = (delta - cut.B.double() @ cut.A.double()).square().sum()
        assert float(error) == pytest.approx(float(spectrum[2:].sum()), rel=1e-4)
        assert export.lost_by_module[name] == pytest.approx(float(spectrum[2:].sum() / spectrum.sum()), rel=1e-4)
        total, lost = total + float(spectrum.sum()), lost + float(spectrum[2:].sum())
    assert export.energy_lost == pytest.approx(lost / total, rel=1e-6)
    assert export.rank == 2
    assert "cut" in export.changes[-1]


def test_what_no_server_takes_is_refused_with_every_reason(tmp_path: Path) -> None:
    adapter = biased(tmp_path / "in")
    for target in (*PEFT_FORMS, "llama.cpp"):
        with pytest.raises(NotExportable, match=r"lora_bias") as refused:
            export_for(adapter, target, tmp_path / target, base=BASE)
        assert refused.value.reasons
        assert not (tmp_path / target).exists()
    with pytest.raises(UnknownRuntime, match=r"llama\.cpp, sglang, tgi, vllm"):
        export_for(adapter, "ollama", tmp_path / "no", base=BASE)


def test_short_names_are_used_only_where_they_mean_the_same(tmp_path: Path) -> None:
    whole = export_for(opened(tmp_path / "a"), "vllm", tmp_path / "whole", base=BASE)
    some = {name: shape for name, shape in LINEARS.items() if name.endswith("0.self_attn.q_proj")}
    part = export_for(opened(tmp_path / "b", some), "vllm", tmp_path / "part", base=BASE)
    named = [json.loads((one.folder / "adapter_config.json").read_text())["target_modules"] for one in (whole, part)]
    assert named == [["q_proj", "v_proj"], ["model.layers.0.self_attn.q_proj"]]
