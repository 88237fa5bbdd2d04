"""Every parametrisation read as factors, against what PEFT itself does to the base weights."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from deltas.adapter import Adapter
from deltas.errors import BadTensors, NotLowRank
from tests.deltas.peft_model import assert_reads, saved, tiny_llama

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.mark.parametrize("rslora", [False, True])
def test_dora_is_read_with_its_base(tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, use_dora=True, use_rslora=rslora)
    assert_reads(saved(tmp_path, config))


def untied() -> LlamaForCausalLM:
    return tiny_llama(tie_word_embeddings=False)


def test_dora_of_an_embedding_is_read_with_its_table(tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=True)
    found = saved(tmp_path, config, make=untied)
    assert_reads(found)
    adapter = found.open(conversion_rank=5)
    assert adapter.modules["model.embed_tokens"].kind == "embedding"
    assert 0 < adapter.reading("model.embed_tokens").relative_error < 1


def test_dora_of_an_embedding_with_no_magnitude_is_incomplete(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"], use_dora=True), make=untied)
    weights = found.adapter / "adapter_model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(weights).items() if "embed_tokens.lora_magnitude" not in key}
    save_file(tensors, weights)
    with pytest.raises(BadTensors, match=r"embed_tokens' has lora_embedding_A but no lora_magnitude_vector"):
        found.open()


def test_dora_cut_to_a_rank_states_the_optimal_error(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, use_dora=True))
    adapter = found.open(conversion_rank=5)
    for name, delta in found.deltas.items():
        reading = adapter.reading(name)
        spectrum = torch.linalg.svdvals(delta).square()
        assert reading.factors.rank == 5
        assert reading.relative_error == pytest.approx(float(spectrum[5:].sum() / spectrum.sum()) ** 0.5, rel=1e-4)


def test_dora_without_its_base_is_stored_and_says_what_is_missing(tmp_path: Path) -> None:
    adapter = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, use_dora=True)).open(bound=False)
    assert adapter.family == "dora"
    assert "weights of its base model" in adapter.obstacles[0]
    with pytest.raises(NotLowRank):
        adapter.factors("model.layers.0.self_attn.q_proj")


def test_a_variant_is_no_obstacle_to_reading_the_header_alone(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraConfig(r=3, target_modules=TARGETS, use_dora=True))
    adapter = Adapter.open(found.adapter / "adapter_config.json", found.adapter / "adapter_model.safetensors")
    assert adapter.modules["model.layers.1.mlp.down_proj"].out_features == 16
