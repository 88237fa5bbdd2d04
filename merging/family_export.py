"""A weighted sum written as its sources' own family, where that is closed (deltas/families/sums.py): no rank is cut."""

from pathlib import Path
from typing import Any

import torch

from deltas.errors import NonFiniteTensor
from deltas.family_sum import sum_in_family
from deltas.writer import write_safetensors
from merging.output import FILE_DTYPES, TORCH_DTYPES, tensor_bytes
from merging.plan import Plan


def write_family(plan: Plan, path: Path) -> dict[str, Any]:
    """Write the weights; returns the adapter_config.json.

    Raises:
        NonFiniteTensor: if the sum is NaN or infinite in the result's dtype.
    """
    weights = {m.name: dict(zip(m.sources, m.weights, strict=True)) for m in plan.modules}
    config, tensors = sum_in_family(plan.adapters, weights, plan.base_modules)
    stored = {key: tensor.to(TORCH_DTYPES[plan.dtype]) for key, tensor in tensors.items()}
    for key, tensor in stored.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise NonFiniteTensor(f"{key} of the result in {plan.dtype}", bad, tensor.numel())
    shapes = {key: (FILE_DTYPES[plan.dtype], tuple(tensor.shape)) for key, tensor in stored.items()}
    write_safetensors(path, shapes, (tensor_bytes(tensor) for tensor in stored.values()))
    return {**config, "base_model_name_or_path": plan.base_model}
