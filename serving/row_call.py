"""What the loop of `row_kernel.py` takes, and how a call of it is described."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Run = Callable[[int, int], None]
"""Runs the call described at an address on so many threads."""

DTYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}

WIDENED: dict[torch.dtype, int] = {torch.bfloat16: 1, torch.float16: 2}
"""What factors may be stored in beside the dtype of the batch (0), as numbers in PARTS."""

# What a call is described by: int64 values in this order, tables as their addresses. PARTS: [COUNT, 6], of each adapter
# A, Bt, rank, where its rows begin and end in MEMBERS (ascending) and WEIGHTS, and its number in WIDENED.
# SCALES: [COUNT].
X, Y, INNER, OUTER, ROWS, TOKENS, PARTS, COUNT, SCALES, MEMBERS, WEIGHTS = range(11)


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for tensors of this kind."""
    return device.type == "cpu" and dtype in DTYPES
