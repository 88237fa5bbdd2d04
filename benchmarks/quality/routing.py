"""Routing, the reference that merges compete with: for each prompt one adapter is chosen, no label being looked at.

An input without its instruction is sent through the base model; the mean of its last hidden states, each dimension
divided by its spread, is compared with the mean of each task's training inputs, and the nearest task's adapter
answers. (With the instruction the choice would be trivial: each task has one of its own.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.packing import Encoded, means, rows

CENTRE_EXAMPLES = 64


def features(model: Any, prompts: Sequence[Encoded]) -> Tensor:
    """[k, width]: the mean hidden states of the inputs, without instruction, in their order."""
    bare = [replace(one, stem=()) for one in prompts]
    return torch.cat([means(model, row) for row in rows(bare)])


def route(centres: Mapping[str, Tensor], asked: Tensor) -> list[int]:
    """Which task each of `asked` [k, width] is nearest to; `centres`: training features [n, width] of each task."""
    centre = torch.stack([one.mean(0) for one in centres.values()])
    spread = torch.cat([one - one.mean(0) for one in centres.values()]).square().mean(0).sqrt().clamp_min(1e-6)
    distance = torch.cdist(asked / spread, centre / spread)
    return [int(one) for one in distance.argmin(1)]
