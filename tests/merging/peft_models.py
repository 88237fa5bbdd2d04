"""PEFT as the oracle: a small random Llama, and adapters with random factors that PEFT itself saved for it."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def peft_adapter(model: LlamaForCausalLM, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter with random factors, saved by PEFT."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    wrapped.save_pretrained(folder)
    return folder
