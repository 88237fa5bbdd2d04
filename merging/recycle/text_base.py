"""A text base as recycling needs it: the folder of a causal language model (config.json, safetensors, tokenizer.json,
its card), its network written out, its tokenizer. Our extension; the paper knows vision bases only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from deltas.base import FolderWeights
from deltas.base_folder import read_card
from deltas.errors import MissingBaseTensor
from deltas.tokenizer import TOKENIZER_FILE
from merging.recycle.errors import BadTexts, TextBaseUnsupported
from merging.recycle.text_network import TextNetwork, TextSizes

LONGEST = 256  # tokens of a text that are read


@dataclass(frozen=True, slots=True, eq=False)
class TextBase:
    """A loaded text base. `modules`: its linear layers with (out, in); `mean`, `std` [D]: of each channel over all
    tokens' embeddings, which texts are normalised by; `start`: the tokens that a bare text begins with."""

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    mean: Tensor
    std: Tensor
    folder: Path
    start: tuple[int, ...]
    network: TextNetwork = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def width(self) -> int:
        return self.network.sizes.width

    def normalised(self, embeddings: Tensor) -> Tensor:
        """Embeddings [..., D] with mean 0 and variance 1 in each channel, over the whole vocabulary."""
        return (embeddings.float() - self.mean) / self.std

    def embeddings(self, inputs: Tensor) -> Tensor:
        """What `normalised` was given."""
        return inputs * self.std + self.mean

    @property
    def ordinary(self) -> Tensor:
        """The tokens that texts are made of: all but those with a meaning of their own."""
        marked = {index for index, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        known = min(len(self.network.table), self.tokenizer.get_vocab_size(with_added_tokens=True))
        return torch.tensor([index for index in range(known) if index not in marked])

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without any that mark beginning or end."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, T, D] of texts, padded at their ends, and their lengths [N]; of long ones the beginning.

        Raises:
            BadTexts: if a text has no tokens.
        """
        found = [self.ids(text)[:LONGEST] for text in texts]
        if not found or not all(found):
            raise BadTexts("texts must have at least one token each, and there must be one")
        lengths = torch.tensor([len(ids) for ids in found])
        padded = torch.tensor([ids + [0] * (int(lengths.max()) - len(ids)) for ids in found])
        return self.network.table[padded.to(self.network.device)], lengths

    def decode(self, ids: Tensor) -> list[str]:
        """The texts of tokens [N, T]."""
        return [str(self.tokenizer.decode(row, skip_special_tokens=False)) for row in ids.tolist()]


def load_text_base(folder: Path, *, device: str = "cpu") -> TextBase:
    """Load a folder that has a base's card, its network in float32 on `device`. Raises TextBaseUnsupported."""
    card = read_card(folder)
    name = str(card["name"])
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TextBaseUnsupported(name, f"its folder cannot be read ({str(error)[:200]})") from error
    _check(name, config)
    try:
        sizes = TextSizes.of(config)
        weights = _weights(FolderWeights(name, folder), sizes, tied=bool(config.get("tie_word_embeddings")))
    except (KeyError, TypeError, ValueError, MissingBaseTensor) as error:
        raise TextBaseUnsupported(name, f"its config.json or its weights lack {error}") from error
    table = weights["model.embed_tokens.weight"]
    variance, mean = torch.var_mean(table, dim=0)
    return TextBase(
        name=name,
        fingerprint=card["fingerprint"],
        modules={module: (shape[0], shape[1]) for module, shape in card["modules"].items()},
        mean=mean,
        std=variance.sqrt().clamp_min(1e-6),
        folder=folder,
        start=() if config.get("bos_token_id") is None else (int(config["bos_token_id"]),),
        network=TextNetwork(sizes, {key: weight.to(device) for key, weight in weights.items()}),
        tokenizer=tokenizer,
    )


def _check(name: str, config: dict[str, Any]) -> None:
    if config.get("model_type") != "llama":
        raise TextBaseUnsupported(name, f"it is a '{config.get('model_type')}' model; known is 'llama'")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise TextBaseUnsupported(name, f"its positions are of type '{rope['rope_type']}'; known is 'default'")
    if config.get("hidden_act", "silu") != "silu":
        raise TextBaseUnsupported(name, f"its activation is '{config['hidden_act']}'; known is 'silu'")


def _weights(stored: FolderWeights, sizes: TextSizes, *, tied: bool) -> dict[str, Tensor]:
    """Every tensor of the network, in float32. Raises MissingBaseTensor."""
    names = ["model.embed_tokens.weight", "model.norm.weight", *([] if tied else ["lm_head.weight"])]
    linears = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    optional = []
    for block in range(sizes.blocks):
        path = f"model.layers.{block}"
        names += [f"{path}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
        names += [f"{path}.{linear}.weight" for linear in linears]
        optional += [f"{path}.{linear}.bias" for linear in linears]
    names += [name for name in optional if stored.shape(name) is not None]
    return {name: stored.tensor(name).float() for name in names}
