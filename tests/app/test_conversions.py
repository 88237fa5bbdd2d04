"""Adapters that are no plain LoRA, over REST: uploaded, merged with a LoRA, and the result loaded by PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.app.service import BASE, LAYERS, Service, problem, small_adapter

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
SHAPES = {name: LAYERS[name] for name in (Q, V)}


def noise(*shape: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def ia3(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scaling = torch.ones(len(weight), 1)
    scaling[:40] += noise(40, 1, seed=1)  # of 64 ranks, which a conversion keeps
    return {"ia3_l": scaling}, (scaling - 1) * weight


def loha(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    outs, ins = weight.shape
    a1, b1, a2, b2 = noise(outs, 2, seed=2), noise(2, ins, seed=3), noise(outs, 2, seed=4), noise(2, ins, seed=5)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return parts, 3 / 2 * (a1 @ b1) * (a2 @ b2)


def miss(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    block = noise(5, len(weight), seed=6)
    return {"miss_block": block}, block.T.repeat(1, 116)[:, : weight.shape[1]]


FAMILIES: dict[str, tuple[Any, dict[str, Any], str]] = {  # parts and ΔW, config, how it is said to be read
    "ia3": (ia3, {"peft_type": "IA3", "feedforward_modules": []}, "is merged by conversion"),
    "loha": (loha, {"peft_type": "LOHA", "r": 2, "alpha": 3}, "is read by conversion"),
    "miss": (miss, {"peft_type": "MISS", "r": 5, "init_weights": True}, "is read by conversion"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_uploaded_merged_with_a_lora_and_loaded_by_peft(
    service: Service, base_folder: Path, tmp_path: Path, family: str
) -> None:
    make, config, note = FAMILIES[family]
    tensors, deltas = {}, {}
    with safe_open(base_folder / "model.safetensors", framework="pt") as base:
        weights = {name: base.get_tensor(f"{name}.weight").float() for name in SHAPES}
    for name, weight in weights.items():
        parts, deltas[name] = make(name, weight)
        tensors |= {f"base_model.model.{name}.{part}": value for part, value in parts.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    document = {"base_model_name_or_path": BASE, "target_modules": sorted(SHAPES), **config}
    (tmp_path / "adapter_config.json").write_text(json.dumps(document))
    version = service.push(f"family/{family}", tmp_path)
    assert (version["family"], version["mergeable"], version["servable"]) == (family, True, True)
    assert note in version["notes"][0]

    lora = small_adapter(tmp_path / "lora", modules=SHAPES, rank=2, alpha=2)
    service.push(f"family/{family}-lora", lora)
    sources = [{"ref": f"family/{family}", "weight": 0.5}, {"ref": f"family/{family}-lora", "weight": 2}]
    service.merge(name=f"family/{family}-both", sources=sources, rank="sum")
    folder = service.download(f"family/{family}-both@1", tmp_path / "merged")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), folder)
    merged = model.merge_and_unload(safe_merge=True).state_dict()
    plain = load_file(lora / "adapter_model.safetensors")
    for name in SHAPES:
        A, B = (plain[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        exact = 0.5 * deltas[name] + 2 * (B @ A)
        assert torch.dist(merged[f"{name}.weight"] - weights[name], exact) <= 1e-4 * exact.norm()


def test_a_sum_of_one_family_may_stay_in_it(service: Service, base_folder: Path, tmp_path: Path) -> None:
    scalings = []
    for i in range(2):
        scaling = 1 + noise(192, 1, seed=20 + i)
        save_file({f"base_model.model.{V}.ia3_l": scaling}, tmp_path / "adapter_model.safetensors")
        config = {"peft_type": "IA3", "feedforward_modules": [], "base_model_name_or_path": BASE, "target_modules": [V]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        service.push(f"family/scaling-{i}", tmp_path)
        scalings.append(scaling)
    sources = [{"ref": "family/scaling-0", "weight": 0.5}, {"ref": "family/scaling-1", "weight": -2}]
    recipe = {"name": "family/scaled", "sources": sources, "export": "family", "conversion_rank": 192}
    planned = service.http.post("/v1/merges", params={"dry_run": "true"}, json=recipe).json()["plan"]
    assert planned["export"] == "family"
    assert "own family" in planned["warnings"][-1]
    service.merge(**recipe)
    version = service.http.get("/v1/adapters/family/scaled/versions/1").json()
    assert (version["family"], version["mergeable"], version["rank"]["max"]) == ("ia3", True, 64)
    folder = service.download("family/scaled@1", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    weight = model.get_submodule(V).weight.detach().clone()
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True).get_submodule(V).weight
    exact = (0.5 * (scalings[0] - 1) - 2 * (scalings[1] - 1)) * weight
    assert torch.dist(merged - weight, exact) <= 1e-5 * exact.norm()
    report = service.http.get("/v1/adapters/family/scaled/versions/1/report").json()
    assert report["export"] == "family"
    assert report["modules"][0]["sources"][0]["conversion_error"] < 1e-5  # at the layer's full rank
    asked = service.http.post("/v1/merges", json={**recipe, "method": "ties"})
    assert "use method 'sum'" in problem(asked, 422, "not-closed")["detail"]


def bare(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """q_proj of layer 0 as kohya would write it, and its ΔW."""
    outs, ins = SHAPES[Q]
    down, up = noise(3, ins, seed=7), noise(outs, 3, seed=8)
    path = f"lora_te_{Q.replace('.', '_')}"
    tensors = {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up, f"{path}.alpha": torch.tensor(1.5)}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder / "adapter_model.safetensors", {Q: up @ down / 2}


def test_weights_in_kohyas_spelling_need_no_config(service: Service, tmp_path: Path) -> None:
    weights, deltas = bare(tmp_path)
    url = "/v1/adapters/family/kohya/versions"
    answer = service.http.post(url, files={"weights": weights.read_bytes()}, data={"base_model": BASE})
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert version["rank"] == {"min": 3, "max": 3, "pattern": {}}
    assert (version["scale"]["max"], version["target_modules"], version["servable"]) == (0.5, ["q_proj"], True)
    assert "kohya's (sd-scripts, LyCORIS) spelling" in version["notes"][0]
    kept = service.http.get(f"{url}/1/files/adapter_model.safetensors").content
    assert kept == weights.read_bytes()
    digests = {file["name"]: file["sha256"].removeprefix("sha256:") for file in version["files"]}
    again = {"weights": f"sha256:{digests['adapter_model.safetensors']}", "base_model": BASE}
    assert service.http.post(url, json=again).json()["ref"] == version["ref"]
    service.merge(name="family/kohya-peft", sources=["family/kohya"])
    merged = load_file(service.download("family/kohya-peft@1", tmp_path / "merged") / "adapter_model.safetensors")
    found = merged[f"base_model.model.{Q}.lora_B.weight"] @ merged[f"base_model.model.{Q}.lora_A.weight"]
    assert torch.dist(found, deltas[Q]) <= 1e-5 * deltas[Q].norm()


def test_weights_in_nemos_spelling_come_with_a_config_that_is_completed(service: Service, tmp_path: Path) -> None:
    outs, ins = SHAPES[Q]
    path = "model.decoder.layers.0.self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter"
    tensors = {f"{path}.linear_in.weight": noise(3, ins, seed=7), f"{path}.linear_out.weight": noise(outs, 3, seed=8)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": "all-linear"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": BASE}))
    version = service.push("family/nemo", tmp_path)
    assert (version["scale"]["max"], version["target_modules"]) == (2, ["q_proj"])
    assert "NeMo's spelling. They are kept as they are, beside their adapter_config.json" in version["notes"][0]


def test_pefts_weights_without_their_config_are_refused(service: Service, tmp_path: Path) -> None:
    weights = (small_adapter(tmp_path) / "adapter_model.safetensors").read_bytes()
    answer = service.http.post("/v1/adapters/family/bare/versions", files={"weights": weights})
    assert "came without adapter_config.json" in problem(answer, 422, "bad-config")["detail"]
