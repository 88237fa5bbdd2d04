"""A base model so small that a service on it starts in little more than its imports."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

HIDDEN, LAYERS = 16, 2
SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {"q_proj": (HIDDEN, HIDDEN), "v_proj": (HIDDEN // 2, HIDDEN)}.items()
}


def write_tiny_base(folder: Path, tokenizer: Path) -> None:
    """A Llama of two layers with random weights, and the tokenizer of another model's folder."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
