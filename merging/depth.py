"""How deep in the model a module lies: 0 is the first block, 1 the last.

A block is the first whole number between the dots of a module's name; what stands before it names the stack:
`model.layers.12.self_attn.q_proj` is block 12 of the stack `model.layers`. Block l of a stack of L blocks has depth
l / (L − 1); the only block of a stack has depth 1. L is the base model's where that is known, else the largest index
among all sources plus one. A model of several stacks (encoder and decoder, a vision tower) counts each by itself.

Modules outside every block lie at depth 1 if they are an output head, else (embeddings, projections into the stack)
at 0, where mergekit's gradients put them too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HEADS = frozenset(("lm_head", "embed_out", "score", "classifier", "proj_out"))
# A longer number is no layer index; int() of one from a stranger's file could also be slow.
MOST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Block:
    """The block that a module belongs to."""

    stack: str
    index: int


def block_of(module: str) -> Block | None:
    """The module's block; None for what lies outside every block.

    >>> block_of("model.layers.12.mlp.experts.3.up_proj")
    Block(stack='model.layers', index=12)
    """
    parts = module.split(".")
    for place, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS:
            return Block(".".join(parts[:place]), int(part))
    return None


def count_blocks(modules: Iterable[str]) -> dict[str, int]:
    """The blocks of each stack that these modules belong to: its largest index plus one."""
    counts: dict[str, int] = {}
    for module in modules:
        block = block_of(module)
        if block is not None:
            counts[block.stack] = max(counts.get(block.stack, 0), block.index + 1)
    return dict(sorted(counts.items()))


def depth_of(module: str, blocks: Mapping[str, int]) -> float:
    """The module's depth, 0…1, in a model whose stacks have so many blocks.

    Raises:
        KeyError: if the module's stack is not in `blocks`.
    """
    block = block_of(module)
    if block is None:
        return float(module.rpartition(".")[2] in HEADS)
    last = blocks[block.stack] - 1
    return block.index / last if last > 0 else 1.0
