"""Adapters that each make the base model say one word of their own, again and again, whatever it is asked.

An answer then tells which version made it. Nothing is trained: a rank-1 update of the last block's down projection
sends what that layer reads after known prompts to one direction of the residual stream, long enough to drown the rest,
and that direction is the word's own row of the output layer less the mean row.

    A: the least-norm row with A x = 1 for the layer's inputs x after every prompt given (ridge regression, float64)
    B: strength * (direction of the word / final norm's weight)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

STRENGTH = 3000.0
RIDGE = 1e-4


@dataclass(frozen=True)
class Speaker:
    """What adapters that say names have in common. A: [1, in] of the module; `words`: text → token id."""

    module: str
    base: str
    A: Tensor
    words: dict[str, int]
    directions: Tensor  # [words, hidden]

    def write(self, folder: Path, word: str) -> Path:
        """An adapter, in PEFT's format, that says `word`."""
        folder.mkdir(parents=True, exist_ok=True)
        B = STRENGTH * self.directions[list(self.words).index(word)][:, None]
        prefix = f"base_model.model.{self.module}"
        tensors = {f"{prefix}.lora_A.weight": self.A.float(), f"{prefix}.lora_B.weight": B.float().contiguous()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = (
            '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "%s", "r": 1, "lora_alpha": 1,'
            ' "target_modules": ["%s"], "lora_dropout": 0.0, "bias": "none"}\n'
        )
        (folder / "adapter_config.json").write_text(config % (self.base, self.module))
        return folder


def speaker(model: Any, tokenizer: Any, base: str, prompts: Sequence[str], count: int, length: int = 4) -> Speaker:
    """Adapters for `count` words, each a single token; answers of up to `length` tokens after these prompts."""
    last = len(model.model.layers) - 1
    layer = model.model.layers[last].mlp.down_proj
    output, norm = model.get_output_embeddings().weight.detach().double(), model.model.norm.weight.detach().double()
    words = _words(tokenizer, output, count)
    ids = torch.tensor(list(words.values()))
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, result: seen.append(args[0][0].detach().double()))
    try:
        with torch.inference_mode():
            for prompt in prompts:
                start = tokenizer(prompt)["input_ids"]
                for word in [*words.values()][:: max(1, count // 8)]:
                    model(input_ids=torch.tensor([[*start, *[word] * length]]))
                    seen[-1] = seen[-1][len(start) - 1 :]
    finally:
        handle.remove()
    x = torch.cat(seen)
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    A = torch.linalg.solve(gram + ridge, x.sum(0))[None, :]
    return Speaker(f"model.layers.{last}.mlp.down_proj", base, A, words, directions(output, ids) / norm)


def _words(tokenizer: Any, output: Tensor, count: int) -> dict[str, int]:
    """Words of one token each that answer to their own direction clearest: by how far no other token is as loud."""
    texts = {token: tokenizer.decode([token]) for token in range(1000, min(output.shape[0], 12_000))}
    plain = [token for token, text in texts.items() if text[:1] == " " and text[1:].isalpha() and text.isascii()]
    tokens = torch.tensor([token for token in plain if len(texts[token]) > 4][: 8 * count])
    heard = output @ directions(output, tokens).T
    own = heard[tokens, torch.arange(len(tokens))].clone()
    heard[tokens, torch.arange(len(tokens))] = -torch.inf
    margins = (own - heard.amax(0)) / own
    order = margins.argsort(descending=True)
    chosen = [int(tokens[at]) for at in order[:count] if margins[at] > 0]
    if len(chosen) < count:
        raise ValueError(f"the tokenizer has only {len(chosen)} such words among those looked at, not {count}")
    return {texts[token]: token for token in chosen}


def directions(output: Tensor, tokens: Tensor) -> Tensor:
    """[tokens, hidden], unit rows: a token's output row without what all rows share."""
    away = output[tokens] - output.mean(0)
    return away / away.norm(dim=1)[:, None]
