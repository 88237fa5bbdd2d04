"""A tiny random model and tiny tasks for it: real parts, small enough to train in a moment."""

from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.quality.design import Kind
from benchmarks.quality.packing import Encoded
from benchmarks.quality.splits import Split

WORDS = 40  # tokens of inputs; labels lie above
KIND = Kind("tiny", "tiny", ("q_proj", "v_proj"), (2, 3), 1e-2, steps=8, joint_steps=4)
TASKS = ("larger", "even", "first")


def tiny_model() -> Any:
    """The same weights each time."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(7)
    model = LlamaForCausalLM(config).eval()
    torch.set_rng_state(generator_state)
    return model


def prompt(stem: int, rng: Random, answer: int) -> Encoded:
    """A prompt of two to five tokens behind a stem of two."""
    rest = tuple(rng.randrange(WORDS) for _ in range(rng.randint(2, 5)))
    return Encoded((60 + stem, 59), rest, (50 + 2 * stem, 51 + 2 * stem), answer)


def tiny_splits(seed: int) -> dict[str, Split]:
    """Three tasks with two labels each; the answers are random, which is as good for counting."""
    found: dict[str, Split] = {}
    for stem, task in enumerate(TASKS):
        rng = Random(f"{task} {seed}")
        parts = [tuple(prompt(stem, rng, rng.randrange(2)) for _ in range(count)) for count in (24, 10, 12)]
        found[task] = Split(*parts)
    return found
