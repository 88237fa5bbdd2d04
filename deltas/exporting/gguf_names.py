"""llama.cpp's names and row order for a base model's linear layers.

Names come from gguf's own table (gguf-py, TensorNameMap). llama.cpp rotates neighbouring pairs of a head's channels
where transformers rotates its halves, so for some architectures its converter reorders the rows of the query and key
weights; B's rows follow them (llama.cpp, conversion/llama.py, LlamaModel.permute).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import gguf
from torch import Tensor

from deltas.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Converted:
    """How llama.cpp's converter treats one class of transformers' models."""

    arch: gguf.MODEL_ARCH
    paired: bool = False  # whether rows of query and key weights are reordered


# Classes whose converter keeps every linear layer as it is but for the order of rows.
CONVERTED: Mapping[str, Converted] = {
    "LlamaForCausalLM": Converted(gguf.MODEL_ARCH.LLAMA, paired=True),
    "MistralForCausalLM": Converted(gguf.MODEL_ARCH.LLAMA, paired=True),
    "GraniteForCausalLM": Converted(gguf.MODEL_ARCH.GRANITE, paired=True),
    "Qwen2ForCausalLM": Converted(gguf.MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Converted(gguf.MODEL_ARCH.QWEN3),
    "GemmaForCausalLM": Converted(gguf.MODEL_ARCH.GEMMA),
    "Gemma2ForCausalLM": Converted(gguf.MODEL_ARCH.GEMMA2),
    "Gemma3ForCausalLM": Converted(gguf.MODEL_ARCH.GEMMA3),
    "Phi3ForCausalLM": Converted(gguf.MODEL_ARCH.PHI3),
    "Starcoder2ForCausalLM": Converted(gguf.MODEL_ARCH.STARCODER2),
}
PAIRED = ("q_proj", "k_proj")


def arch_name(base: Architecture) -> str:
    """general.architecture, such as "llama". Raises KeyError for a class that is not in CONVERTED."""
    name: str = gguf.MODEL_ARCH_NAMES[CONVERTED[base.kind].arch]
    return name


def tensor_names(base: Architecture) -> Mapping[str, str]:
    """Module name → llama.cpp's tensor, for all that the architecture can have ("blk.0.attn_q.weight")."""
    return _names(CONVERTED[base.kind].arch, base.layers)


@lru_cache(maxsize=64)
def _names(arch: gguf.MODEL_ARCH, layers: int) -> Mapping[str, str]:
    table = gguf.get_tensor_name_map(arch, layers)
    return {module: f"{found[1]}.weight" for module, found in table.mapping.items()}


def in_file_order(B: Tensor, module: str, base: Architecture) -> Tensor:
    """The rows of B [out, rank] in the order that llama.cpp's file has the module's rows in."""
    suffix = module.rsplit(".", 1)[-1]
    if not CONVERTED[base.kind].paired or suffix not in PAIRED:
        return B
    return paired_halves(B, base.heads if suffix == "q_proj" else base.kv_heads)


def paired_halves(rows: Tensor, heads: int) -> Tensor:
    """[heads · (first half, second half), …] → [heads · (first of both, second of both, …), …]."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
