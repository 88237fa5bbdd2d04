"""Starts of a LoRA: those that change the base weight are taken off it again, the others change nothing."""

from pathlib import Path

import pytest
import torch
from peft import EvaConfig, KasaConfig, LoraConfig

from deltas.singular import largest_part, leading_rows, smallest_part
from tests.deltas.peft_model import assert_reads, saved

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.mark.parametrize("rslora", [False, True])
def test_kasa_is_a_lora_of_twice_the_rank(tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, kasa_config=KasaConfig(), use_rslora=rslora)
    found = saved(tmp_path, config)
    assert_reads(found)
    adapter = found.open()
    assert (adapter.family, adapter.exact) == ("kasa", True)
    assert adapter.factors("model.layers.0.mlp.down_proj").rank == 6


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_starts_from_the_base_weight_are_taken_off_it_again(tmp_path: Path, start: str, rslora: bool) -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, init_lora_weights=start, use_rslora=rslora)
    found = saved(tmp_path, config)
    assert_reads(found)
    adapter = found.open()
    assert (adapter.family, adapter.exact) == (start, True)
    assert adapter.factors("model.layers.0.mlp.down_proj").rank == 6
    assert "weights of its base model" in found.open(bound=False).obstacles[0]


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "mica", "eva"])
def test_starts_beside_the_base_weight_are_plain_lora(tmp_path: Path, start: bool | str) -> None:
    eva = EvaConfig() if start == "eva" else None
    found = saved(tmp_path, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=start, eva_config=eva))
    assert found.open(bound=False).obstacles == ()
    assert_reads(found)


@pytest.mark.parametrize("shape", [(7, 11), (11, 7)])
def test_parts_of_a_weight_are_those_of_its_decompositions(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    Q, R = torch.linalg.qr(weight)
    for part, expected in (
        (largest_part(weight, 3), U[:, :3] * S[:3] @ Vh[:3]),
        (smallest_part(weight, 3), U[:, 4:] * S[4:] @ Vh[4:]),
        (leading_rows(weight, 3), Q[:, :3] @ R[:3]),
    ):
        assert part.rank == 3
        torch.testing.assert_close(part.B @ part.A, expected)
