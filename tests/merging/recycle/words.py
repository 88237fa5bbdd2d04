"""A language of 160 words for a tiny Llama, and texts whose classes are known: each class prefers words of its own."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

GROUPS, PER_GROUP = 16, 10
MARKS = ["<s>", "[unk]", "ask", ":", "answer"]
WORDS = [f"w{group}x{number}" for group in range(GROUPS) for number in range(PER_GROUP)]


def write_text_base(folder: Path) -> Path:
    """A transformers folder: 2 blocks of width 24, 4 heads (2 of keys and values), random weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(MARKS) + len(WORDS), hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, initializer_range=0.3,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(MARKS[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "[unk]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def texts(
    groups: list[int], per_class: int, rng: torch.Generator, lengths: tuple[int, int] = (5, 8)
) -> tuple[list[str], Tensor]:
    """Texts of 5 to 8 words, and labels that count `groups`; three words of four are of the class's own group."""
    found, labels = [], []
    for label, group in enumerate(groups):
        for _ in range(per_class):
            length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=rng))
            chosen = []
            for _ in range(length):
                from_own = float(torch.rand((), generator=rng)) < 0.75
                of = group if from_own else int(torch.randint(GROUPS, (), generator=rng))
                chosen.append(f"w{of}x{int(torch.randint(PER_GROUP, (), generator=rng))}")
            found.append(" ".join(chosen))
            labels.append(label)
    return found, torch.tensor(labels)
