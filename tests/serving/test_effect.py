"""Adapters that change nothing are refused by name when they are loaded; all others are not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deltas.adapter import Adapter
from deltas.effect import has_effect, silence
from serving.base_model import BaseModel
from serving.errors import AdapterModuleMissing, NoEffect
from serving.resident import make_resident
from tests.factory import write_adapter


def _adapter(folder: Path, base: BaseModel, change: Mapping[str, float], **options: object) -> Adapter:
    """A small adapter for `base`, its tensors multiplied by `change` (part of the key -> factor)."""
    chosen = {name: shape for name, shape in base.modules.items() if "v_proj" in name or "up_proj" in name}
    write_adapter(folder, chosen, rank=3, **options)  # type: ignore[arg-type]
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for part, factor in change.items():
        tensors = {key: tensor * factor if part in key else tensor for key, tensor in tensors.items()}
    save_file(tensors, file)
    return Adapter.open(folder / "adapter_config.json", file)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"lora_B": 0.0}, {}, "B is zero in all 6 modules, as if never trained"),
        ({"lora_A": 0.0}, {}, "A is zero in all 6 modules"),
        ({"v_proj.lora_A": 0.0, "up_proj.lora_B": 0.0}, {}, "A, B or their product is zero"),
        ({}, {"alpha": 0.0}, "B is zero in all 6 modules"),
    ],
)
def test_without_effect_it_is_refused_and_says_why(
    tiny_base: BaseModel, tmp_path: Path, change: Mapping[str, float], options: Mapping[str, object], said: str
) -> None:
    with pytest.raises(NoEffect, match=said) as refused:
        make_resident("d", _adapter(tmp_path, tiny_base, change, **options), tiny_base)
    assert refused.value.digest == "d"
    assert len(refused.value.modules) == 6


def test_one_module_with_an_effect_is_enough(tiny_base: BaseModel, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, tiny_base, {"v_proj.lora_B": 0.0, "layers.0.mlp.up_proj.lora_B": 0.0})
    made = make_resident("d", adapter, tiny_base)
    assert len(made.modules) == 6


def test_modules_that_the_base_lacks_are_named(tiny_base: BaseModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, {"transformer.h.0.attn.c_attn": (40, 40)})
    adapter = Adapter.open(tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterModuleMissing, match=r"transformer\.h\.0\.attn\.c_attn"):
        make_resident("d", adapter, tiny_base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_small_is_not_nothing_until_it_underflows(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    A, B = torch.randn(4, 600, generator=rng), torch.randn(300, 4, generator=rng)
    assert has_effect((A * 1e-3).to(dtype), (B * 1e-3).to(dtype))
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 8
    assert not has_effect(A.to(dtype), (B.double() * tiny).to(dtype))
    root = tiny**0.5 / 8  # each factor is told from zero, their product is not
    assert not has_effect((A.double() * root).to(dtype), (B.double() * root).to(dtype))


def test_ranks_that_cancel_are_nothing() -> None:
    rng = torch.Generator().manual_seed(2)
    A, B = torch.randn(3, 50, generator=rng), torch.randn(40, 3, generator=rng)
    doubled = torch.cat([A, A]), torch.cat([B, -B], dim=1)
    assert not has_effect(*doubled)
    assert silence([doubled]) == "the ranks of A and B cancel, or their product is too small, in all 1 modules"
    assert has_effect(torch.cat([A, A]), torch.cat([B, -0.999 * B], dim=1))


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10_000),
    st.floats(0, 1),
)
def test_it_agrees_with_the_dense_product(rank: int, outs: int, ins: int, seed: int, sparsity: float) -> None:
    """Small integers, so that the dense product is exact."""
    rng = torch.Generator().manual_seed(seed)
    A, B = (torch.randint(-2, 3, shape, generator=rng).double() for shape in ((rank, ins), (outs, rank)))
    A *= torch.rand(A.shape, generator=rng) >= sparsity
    B *= torch.rand(B.shape, generator=rng) >= sparsity
    assert has_effect(A, B) == bool((B @ A).any())
