"""The worked example of the documentation: two small adapters, merged by any method through the engine itself.

Both have rank 2 on one module of 3 outputs and 4 inputs, with whole numbers as factors, so that their updates and the
weighted sum can be followed by hand. Methods can be compared, as all of them get the same two.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.factors import Factors
from deltas.writer import write_safetensors
from merging.engine import run_merge
from merging.planning import plan_merge
from merging.recipe import Recipe

MODULE = "model.layers.0.self_attn.q_proj"
SOURCES = {
    "a": Factors(
        torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, -1]]),
        torch.tensor([[2.0, 0], [1, 1], [0, 1]]),
    ),
    "b": Factors(
        torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 2]]),
        torch.tensor([[1.0, 0], [0, -1], [1, 1]]),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A recipe on the two sources, the merged update [3, 4] and what the report says of it."""

    recipe: dict[str, Any]
    result: Tensor
    rank: int
    relative_error: float


def worked_example(method: str) -> Example:
    """Merge the two sources by `method` with its defaults, both at weight 1.

    Raises:
        UnknownMethod: there is no such method.
    """
    asked = {"method": method, "sources": [{"ref": ref, "weight": 1.0} for ref in SOURCES]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        adapters = [_written(folder / ref, factors) for ref, factors in SOURCES.items()]
        merged = run_merge(plan_merge(Recipe.model_validate(asked), adapters), folder / "work")
        factors = Adapter.open(merged.config, merged.weights).factors(MODULE)
        return Example(
            asked,
            factors.B.double() @ factors.A.double(),
            merged.report["modules"][0]["rank"],
            merged.report["totals"]["relative_error"],
        )


def _written(folder: Path, factors: Factors) -> Adapter:
    """The factors as an adapter in PEFT's format, with scale 1."""
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    sides = {"A": factors.A, "B": factors.B}
    shapes = {f"base_model.model.{MODULE}.lora_{side}.weight": ("F32", tuple(t.shape)) for side, t in sides.items()}

    def chunks() -> Iterator[bytes]:
        for tensor in sides.values():
            yield tensor.numpy().tobytes()

    write_safetensors(weights, shapes, chunks())
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "example/base",
        "r": factors.rank,
        "lora_alpha": factors.rank,
        "target_modules": [MODULE.rpartition(".")[2]],
    }
    return Adapter.open(config, weights)
