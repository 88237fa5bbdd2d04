"""PEFT's types beside LoRA, read as factors: each against what PEFT itself does to the base weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GloraConfig, HiraConfig, IA3Config, LoHaConfig, LoKrConfig, MissConfig, VeraConfig
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from deltas.adapter import Adapter
from deltas.errors import BadTensors, NotLowRank
from tests.deltas.peft_model import SIZES, Saved, assert_reads, saved

# q_proj is [16, 16], v_proj [8, 16], down_proj [16, 24].
T = ["q_proj", "v_proj", "down_proj"]
Q = "model.layers.0.self_attn.q_proj"

CASES: dict[str, tuple[Any, str, int, bool]] = {  # config, family, rank of q_proj, exact
    "miss": (MissConfig(r=3, target_modules=T), "miss", 3, True),
    "miss, r divides in": (MissConfig(r=4, target_modules=T), "miss", 4, True),
    "miss, random start": (MissConfig(r=5, target_modules=T, init_weights=False), "miss", 5, True),
    "miss, more ranks than outputs": (MissConfig(r=10, target_modules=T), "miss", 10, True),
    "miss mini": (MissConfig(r=5, target_modules=T, init_weights="mini", mini_r=2), "miss", 2, True),
    "miss mini, wide": (MissConfig(r=3, target_modules=T, init_weights="mini", mini_r=4), "miss", 3, True),
    "miss bat": (MissConfig(r=4, target_modules=T, init_weights="bat"), "miss_bat", 16, False),
    "hira": (HiraConfig(r=2, target_modules=T), "hira", 16, False),
    "hira, pattern ignored": (HiraConfig(r=2, target_modules=T, rank_pattern={"q_proj": 3}), "hira", 16, False),
    "loha": (LoHaConfig(r=2, alpha=5, target_modules=T), "loha", 4, True),
    "loha, ranks": (LoHaConfig(r=2, alpha=5, target_modules=T, rank_pattern={"q_proj": 3}), "loha", 9, True),
    "loha, dense": (LoHaConfig(r=5, alpha=3, target_modules=T), "loha", 16, False),
    "lokr": (LoKrConfig(r=1, alpha=3, target_modules=T), "lokr", 4, True),
    "lokr, both": (LoKrConfig(r=1, alpha=3, target_modules=T, decompose_both=True), "lokr", 1, True),
    "lokr, whole": (LoKrConfig(r=8, alpha=3, target_modules=T), "lokr", 16, False),
    "lokr, factor": (LoKrConfig(r=2, alpha=3, target_modules=T, decompose_factor=2), "lokr", 4, True),
    "vera": (VeraConfig(r=6, target_modules=T), "vera", 6, True),
    "ia3": (IA3Config(target_modules=T, feedforward_modules=["down_proj"]), "ia3", 16, False),
    "glora": (GloraConfig(r=2, target_modules=T), "glora", 16, False),
    "glora vector": (GloraConfig(target_modules=T, config_A_B="vector"), "glora", 16, False),
    "glora constant": (GloraConfig(target_modules=T, config_A_B="constant"), "glora", 16, False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_type_is_read_as_peft_merges_it(tmp_path: Path, case: str) -> None:
    config, family, rank, exact = CASES[case]
    found = saved(tmp_path, config)
    assert_reads(found)
    adapter = found.open()
    assert adapter.family == family
    assert (adapter.modules[Q].rank, adapter.modules[Q].exact) == (rank, exact)
    assert adapter.conversion
    assert ("cut to rank 64" in adapter.conversion) != adapter.exact


@pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A")
def test_vera_without_its_matrices_draws_them_as_peft_does(tmp_path: Path) -> None:
    found = saved(tmp_path, VeraConfig(r=6, target_modules=T, save_projection=False, projection_prng_key=7))
    assert not any("vera_A" in key for key in load_file(found.adapter / "adapter_model.safetensors"))
    assert_reads(found)


@pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A")
def test_vera_without_matrices_or_seed_is_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, VeraConfig(r=6, target_modules=T, save_projection=False))
    config = found.adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "projection_prng_key": None}))
    with pytest.raises(BadTensors, match="no projection_prng_key"):
        found.open()


def test_a_glora_without_weight_paths_changes_nothing(tmp_path: Path) -> None:
    found = saved(tmp_path, GloraConfig(target_modules=T, config_A_B="none"))
    assert found.deltas == {}
    assert float(found.open().factors(Q).B.abs().max()) == 0


def old_bone(found: Saved) -> Saved:
    """The same adapter as PEFT wrote it before MiSS replaced Bone."""
    weights, config = found.adapter / "adapter_model.safetensors", found.adapter / "adapter_config.json"
    save_file({k.replace(".miss_", ".bone_"): v for k, v in load_file(weights).items()}, weights)
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "BONE"}))
    return found


@pytest.mark.parametrize("init", [True, "bat"])
def test_old_bone_files_are_read_as_miss(tmp_path: Path, init: Any) -> None:
    assert_reads(old_bone(saved(tmp_path, MissConfig(r=4, target_modules=T, init_weights=init))))


@pytest.mark.parametrize(
    "config", [MissConfig(r=4, target_modules=T), IA3Config(target_modules=T, feedforward_modules=[])]
)
def test_without_the_base_the_adapter_opens_and_says_what_it_lacks(tmp_path: Path, config: Any) -> None:
    adapter = saved(tmp_path, config).open(bound=False)
    assert adapter.needs_base
    assert adapter.modules[Q].in_features == 0
    assert "weights of its base model" in adapter.obstacles[0]
    adapter.check_base("tiny", {name: (info.out_features, 16) for name, info in adapter.modules.items()})
    with pytest.raises(NotLowRank):
        adapter.factors(Q)


def tiny_qwen() -> Qwen2ForCausalLM:
    """A model whose attention has biases."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


@pytest.mark.parametrize(
    ("config", "word"),
    [(IA3Config(target_modules=T, feedforward_modules=["down_proj"]), "IA³"), (GloraConfig(target_modules=T), "GLoRA")],
)
def test_a_changed_bias_is_an_obstacle_that_names_it(tmp_path: Path, config: Any, word: str) -> None:
    adapter = saved(tmp_path, config, make=tiny_qwen).open()
    way_out = "; a sum of IA³ adapters keeps it with export 'family'" if word == "IA³" else ""
    assert adapter.obstacles == (
        f"{word} also {'scales' if word == 'IA³' else 'changes'} the bias of '{Q}' (4 such), which low-rank factors"
        f" cannot hold{way_out}",
    )


def test_ia3_of_feedforward_layers_leaves_biases_alone(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=["q_proj"])
    assert_reads(saved(tmp_path, config, make=tiny_qwen))


def edited(found: Saved, **changes: torch.Tensor) -> Adapter:
    """The adapter with some tensors of q_proj in layer 0 replaced or added."""
    weights = found.adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, **{f"base_model.model.{Q}.{part}": value for part, value in changes.items()}}, weights)
    return found.open()


BROKEN: dict[str, tuple[Any, dict[str, tuple[int, ...]], str]] = {
    "hira": (HiraConfig(r=2, target_modules=T), {"hira_B": (16, 3)}, "hira_B has rank 3"),
    "loha": (LoHaConfig(r=2, target_modules=T), {"hada_w2_a": (16, 3)}, "hada_w2_a has shape [16, 3]"),
    "tucker": (LoHaConfig(r=2, target_modules=T), {"hada_t1": (2, 2, 3, 3)}, "hada_t1, a convolution's"),
    "lokr": (LoKrConfig(r=8, target_modules=T), {"lokr_w1_a": (4, 2)}, "either lokr_w1, or lokr_w1_a and lokr_w1_b"),
    "lokr size": (LoKrConfig(r=8, target_modules=T), {"lokr_w1": (9000, 1), "lokr_w2": (9000, 20)}, "81000000 x 20"),
    "miss": (MissConfig(r=2, target_modules=T), {"miss_block": (3, 16)}, "rank 3 in the tensors but 2"),
    "mini": (MissConfig(r=2, target_modules=T, init_weights="mini", mini_r=4), {"miss_block": (2, 8)}, "mini_r is 4"),
    "bat": (MissConfig(r=2, target_modules=T, init_weights="bat"), {"miss_block": (8, 2)}, "[out / r, r, r]"),
    "ia3": (IA3Config(target_modules=T, feedforward_modules=[]), {"ia3_l": (16, 2)}, "[out, 1], or [1, in]"),
    "vera": (VeraConfig(r=2, target_modules=T), {"vera_lambda_d": (3,)}, "rank 3 in the tensors but 2"),
    "glora": (GloraConfig(r=2, target_modules=T), {"glora_A.Xu": (3, 16)}, "Xd has rank 2 but Xu has rank 3"),
    "glora sides": (GloraConfig(target_modules=T, r=2), {"glora_B.Xu": (2, 9)}, "do not fit each other"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_contradict_each_other_are_refused(tmp_path: Path, case: str) -> None:
    config, shapes, sentence = BROKEN[case]
    with pytest.raises(BadTensors) as caught:
        edited(saved(tmp_path, config), **{part: torch.zeros(shape) for part, shape in shapes.items()})
    assert sentence in str(caught.value)
