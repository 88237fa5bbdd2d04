"""A Llama as a pure function of its weights: what transformers' `LlamaModel` computes from token embeddings, and what
recycling texts needs inside it: a LoRA given by value, a beginning that is computed once for many texts, and only some
of a text's tokens going in. Our extension; the paper knows vision transformers only.

Legend: N texts, T tokens of a text, P tokens of the beginning, D width, d width of a head. Module names are the model's
own (`model.layers.0.self_attn.q_proj`), as adapters of it use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.recycle.updated import Lora, updated_linear

Beginning = Sequence[tuple[Tensor, Tensor]]
"""For each block the keys and values [1, heads, P, d] of tokens that all texts begin with."""


@dataclass(frozen=True, slots=True)
class TextSizes:
    """The numbers that a Llama config is made of."""

    width: int
    blocks: int
    heads: int
    head_width: int
    epsilon: float
    theta: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TextSizes":
        """From `config.json`. Raises KeyError where a field is missing."""
        heads, rope = int(config["num_attention_heads"]), config.get("rope_parameters") or config
        return cls(
            width=int(config["hidden_size"]),
            blocks=int(config["num_hidden_layers"]),
            heads=heads,
            head_width=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            theta=float(rope.get("rope_theta", 10_000.0)),
        )


class Heard(NamedTuple):
    """What the network made of N texts.

    `embedding` [N, D]: the mean of a text's own last states, after the last norm, not normalised. `last` [N, D]: the
    state at its last token. `attention` [N, T]: what the last token pays to each token of the text in the last block,
    the mean over heads. `beginning`: keys and values of all tokens, for texts that go on after them.
    """

    embedding: Tensor
    last: Tensor
    attention: Tensor
    beginning: Beginning


class TextNetwork:
    """The network of one base model, which computes in the dtype and on the device of its weights."""

    def __init__(self, sizes: TextSizes, weights: Mapping[str, Tensor]) -> None:
        self.sizes = sizes
        self.weights = weights

    @property
    def table(self) -> Tensor:
        """The embedding of every token [V, D]."""
        return self.weights["model.embed_tokens.weight"]

    @property
    def outputs(self) -> Tensor:
        """The output layer [V, D]; of many models it is the embeddings' table."""
        return self.weights.get("lm_head.weight", self.table)

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        return self.table.device

    def to(self, dtype: torch.dtype) -> "TextNetwork":
        """The same network in another dtype."""
        if dtype == self.dtype:
            return self
        return TextNetwork(self.sizes, {name: weight.to(dtype) for name, weight in self.weights.items()})

    def __call__(
        self,
        inputs: Tensor,
        lora: Lora | None = None,
        /,
        *,
        patches: Tensor | None = None,
        lengths: Tensor | None = None,
        beginning: Beginning = (),
    ) -> Heard:
        """Token embeddings [N, T, D] through the network with `lora`.

        `patches` [N, K]: only these tokens of each text enter (ascending; each keeps its own position); default: all.
        `lengths` [N]: how many tokens of each text are its own, the rest is padding; default: all. `beginning`: what
        all texts go on from. What comes back lies where the inputs do, in float32 or wider.
        """
        tokens = inputs.to(self.device, self.dtype)
        count, before = len(tokens), beginning[0][0].shape[2] if beginning else 0
        places = torch.arange(tokens.shape[1], device=self.device).expand(count, -1)
        if patches is not None:
            places = patches.to(self.device)
            tokens = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        length = tokens.shape[1]
        rotation = self._rotation(places + before)
        visible = torch.ones(length, before + length, dtype=torch.bool, device=self.device).tril(before)
        kept: list[tuple[Tensor, Tensor]] = []
        attention = tokens.new_zeros(count, length)
        for block in range(self.sizes.blocks):
            name = f"model.layers.{block}"
            entering = self._norm(tokens, f"{name}.input_layernorm")
            query, key, value = self._parts(entering, f"{name}.self_attn", lora or {}, rotation)
            if beginning:
                key, value = (
                    torch.cat([old.expand(count, -1, -1, -1), new], dim=2)
                    for old, new in zip(beginning[block], (key, value), strict=True)
                )
            kept.append((key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=True)
            mixed = mixed.transpose(1, 2).reshape(count, length, -1)
            tokens = tokens + updated_linear(self.weights, mixed, f"{name}.self_attn.o_proj", lora or {})
            tokens = tokens + self._mlp(
                self._norm(tokens, f"{name}.post_attention_layernorm"), f"{name}.mlp", lora or {}
            )
            if block == self.sizes.blocks - 1:
                attention = _last_attention(query.detach(), key.detach())[:, before:]
        states = self._norm(tokens, "model.norm")
        states = states.to(inputs.device, states.dtype if states.dtype == torch.float64 else torch.float32)
        own = torch.full((count,), length) if lengths is None else lengths
        own = own.to(states.device)
        seen = (torch.arange(length, device=states.device) < own[:, None]).to(states)[..., None]
        last = states[torch.arange(count, device=states.device), own - 1]
        return Heard((states * seen).sum(1) / seen.sum(1), last, attention.to(states), kept)

    def _rotation(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [N, 1, T, d] of rotary positions, in float32 as transformers has them."""
        half = torch.arange(0, self.sizes.head_width, 2, device=places.device).float() / self.sizes.head_width
        angles = places[..., None].float() * (self.sizes.theta**-half)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _parts(
        self, tokens: Tensor, name: str, lora: Lora, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, heads, T, d], keys and values [N, shared heads, T, d], turned to their positions."""
        found = []
        for part in "qkv":
            flat = updated_linear(self.weights, tokens, f"{name}.{part}_proj", lora)
            found.append(flat.view(*flat.shape[:2], -1, self.sizes.head_width).transpose(1, 2))
        query, key, value = found
        return _turned(query, rotation), _turned(key, rotation), value

    def _norm(self, tokens: Tensor, name: str) -> Tensor:
        wide = tokens if tokens.dtype == torch.float64 else tokens.float()
        scaled = wide * (wide.square().mean(-1, keepdim=True) + self.sizes.epsilon).rsqrt()
        return self.weights[f"{name}.weight"] * scaled.to(tokens.dtype)

    def _mlp(self, tokens: Tensor, name: str, lora: Lora) -> Tensor:
        gate = F.silu(updated_linear(self.weights, tokens, f"{name}.gate_proj", lora))
        up = updated_linear(self.weights, tokens, f"{name}.up_proj", lora)
        return updated_linear(self.weights, gate * up, f"{name}.down_proj", lora)


def _turned(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: x·cos + (−x₂, x₁)·sin."""
    cosines, sines = rotation
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines + torch.cat([-second, first], dim=-1) * sines


def _last_attention(query: Tensor, key: Tensor) -> Tensor:
    """What the last token pays to every token [N, P + T], the mean over heads."""
    shared = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query[:, :, -1:] @ shared.transpose(2, 3) * query.shape[-1] ** -0.5
    attention: Tensor = scores.float().softmax(-1).mean(1)
    return attention[:, 0]
