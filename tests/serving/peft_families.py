"""Adapters of every family, made and applied by PEFT itself on a tiny base: the oracle for what is served."""

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    GloraConfig,
    HiraConfig,
    IA3Config,
    KasaConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)  # fmt: skip
from torch import Tensor, nn

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from tests.deltas.peft_model import noise

# Of the tiny Llama: [40, 40], [8, 40], [40, 56]. All have a bias in the biased one.
T = ["q_proj", "v_proj", "down_proj"]
FEEDFORWARD = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}

# PEFT rounds the scales of LoHa and LoKr to float32, so these are fractions of two.
FAMILIES: dict[str, Any] = {
    "lora": LoraConfig(r=3, lora_alpha=7, target_modules=T),
    "dora": LoraConfig(r=3, lora_alpha=7, target_modules=T, use_dora=True),
    "dora patterns": LoraConfig(
        r=3, lora_alpha=7, target_modules=T, use_dora=True, use_rslora=True,
        rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 2},
    ),
    "kasa": LoraConfig(r=2, lora_alpha=7, target_modules=T, kasa_config=KasaConfig()),
    "pissa": LoraConfig(r=2, lora_alpha=3, target_modules=T, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, lora_alpha=3, target_modules=T, init_lora_weights="olora"),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, lora_alpha=7, total_step=10, tinit=1, tfinal=2, target_modules=T),
    "miss": MissConfig(r=4, target_modules=T),
    "miss bat": MissConfig(r=4, target_modules=T, init_weights="bat"),
    "hira": HiraConfig(r=2, target_modules=T),
    "ia3": IA3Config(**FEEDFORWARD),
    "loha": LoHaConfig(r=2, alpha=5, target_modules=T),
    "loha, large": LoHaConfig(r=4, alpha=5, target_modules=T),
    "loha, full": LoHaConfig(r=6, alpha=9, target_modules=T),
    "lokr": LoKrConfig(r=1, alpha=3, target_modules=T),
    "vera": VeraConfig(r=6, target_modules=T),
    "glora": GloraConfig(r=2, target_modules=T, config_C="lora", config_D_E="vector"),
    "glora vector": GloraConfig(r=2, target_modules=T, config_A_B="vector", config_C="vector", config_D_E="constant"),
    "lora bias": LoraConfig(r=3, lora_alpha=7, target_modules=T, lora_bias=True),
    "biases": LoraConfig(r=3, lora_alpha=7, target_modules=T, bias="all"),
    "dora biases": LoraConfig(r=3, lora_alpha=7, target_modules=T, use_dora=True, bias="lora_only"),
    "whole": LoraConfig(r=3, lora_alpha=7, target_modules=T, modules_to_save=["lm_head", "gate_proj"]),
}  # fmt: skip
# PEFT takes the base weight apart in float32 there, and only there.
IN_FLOAT32 = {"kasa", "pissa", "olora"}


@dataclass(frozen=True)
class Made:
    """An adapter's folder, and what PEFT says of it on its base: logits, and the change of every tensor by its name."""

    folder: Path
    logits: Tensor
    changes: dict[str, Tensor]

    def open(self) -> Adapter:
        return Adapter.open(self.folder / "adapter_config.json", self.folder / "adapter_model.safetensors")


def plain_model(base: BaseModel, dtype: torch.dtype = torch.float64) -> Any:
    """The transformers model, a copy of its own."""
    return copy.deepcopy(base.model).to(dtype)


def make(
    base: BaseModel,
    folder: Path,
    config: Any,
    ids: Tensor,
    *,
    seed: int = 1,
    merge: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Made:
    """Save an adapter as PEFT does, with noise in place of training, and load it again.

    `merge`: whether PEFT can merge it; otherwise there are no changes.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PEFT remarks on tied weights and one-dimensional biases
        torch.manual_seed(seed)
        model = get_peft_model(plain_model(base, dtype), config)
        noise(model, seed, 0.2)
        model.save_pretrained(folder)
        document = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": "tiny/base"}))
        loaded = PeftModel.from_pretrained(plain_model(base, dtype), folder).double().eval()
        logits = loaded(ids).logits
        before = base.model.state_dict() if merge else {}
        after = loaded.merge_and_unload(safe_merge=True).state_dict() if merge else {}
    changes = {name: after[name] - tensor for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    return Made(folder, logits, changes)


def merged(base: BaseModel, parts: list[tuple[Made, float]]) -> Any:
    """The model whose tensors are the base's and the weighted sum of PEFT's changes."""
    model = plain_model(base)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # apart from the embedding
    with torch.no_grad():
        tensors = dict(model.named_parameters())
        for made, weight in parts:
            for name, change in made.changes.items():
                tensors[name] += weight * change
    return model
