"""PEFT as the oracle: a small random Llama, and adapters that PEFT itself saved for it."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**small, **config})).eval()


def peft_adapter(model: LlamaForCausalLM, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter saved by PEFT, as if trained: random factors, and everything else that it trains moved at random."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                parameter.normal_(std=0.2)
            elif parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return folder
