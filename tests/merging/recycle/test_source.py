"""Sources as people bring them: heads inside the adapter or beside it, and what is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2ForImageClassification

from deltas.adapter import Adapter
from deltas.errors import NonFiniteTensor
from merging.recycle.errors import HeadMismatch, HeadMissing, RecycleError, SourceUnusable
from merging.recycle.lora import averaged, new_lora, read_lora, summed, write_lora
from merging.recycle.source import open_source
from merging.recycle.vision_base import VisionBase
from tests.factory import write_adapter

MODULES = {f"encoder.layer.{block}.attention.{part}_proj": (24, 24) for block in range(3) for part in "qv"}
SAVED = {"modules_to_save": ["classifier"]}


def opened(folder: Path) -> Adapter:
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


def head(ways: int = 4, width: int = 24) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {
        "base_model.model.classifier.weight": torch.randn(ways, width, generator=rng),
        "base_model.model.classifier.bias": torch.randn(ways, generator=rng),
    }


def test_an_adapter_trained_by_peft_answers_as_it_does_there(tiny: VisionBase, oracle: Any, tmp_path: Path) -> None:
    """`Dinov2ForImageClassification` with a LoRA and its classifier saved whole, through PEFT's own file."""
    torch.manual_seed(4)
    plain = Dinov2ForImageClassification(Dinov2Config.from_dict({**oracle.config.to_dict(), "num_labels": 4})).eval()
    plain.dinov2.load_state_dict(oracle.state_dict())
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **SAVED)  # type: ignore[arg-type]
    tuned: Any = get_peft_model(plain, config)
    tuned.save_pretrained(tmp_path)
    images = torch.randn(3, 3, 20, 20)
    source = open_source("me/cats@1", opened(tmp_path), tiny)
    with torch.no_grad():
        wanted, found = tuned(images).logits, source.logits(tiny.network, images)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert source.ways == 4
    assert set(source.lora) == set(MODULES)


def test_a_head_in_a_file_of_its_own_perhaps_without_bias(tiny: VisionBase, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", MODULES)
    weight = torch.randn(3, 24)
    save_file({"weight": weight}, tmp_path / "head.safetensors")
    source = open_source("me/a@1", opened(folder), tiny, head=tmp_path / "head.safetensors")
    images = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        expected = tiny.network(images, source.lora).embedding @ weight.T
        torch.testing.assert_close(source.logits(tiny.network, images), expected)


def test_what_cannot_be_a_source_is_refused_by_name(tiny: VisionBase, tmp_path: Path) -> None:
    other = {"encoder.layer.9.attention.q_proj": (24, 24)}
    wide = {"encoder.layer.0.attention.q_proj": (24, 16)}
    nan = {name: torch.full_like(tensor, float("nan")) for name, tensor in head().items()}
    two = {**head(), "base_model.model.score.weight": torch.zeros(2, 24)}
    cases: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
        ({}, {}, HeadMissing, "no classification head"),
        ({"modules": other}, {**head()}, SourceUnusable, "no linear layer of"),
        ({"modules": wide}, {**head()}, SourceUnusable, r"shape \[24, 16\]"),
        ({}, head(width=25), HeadMismatch, r"shape \[4, 25\]"),
        ({}, head(ways=1), HeadMismatch, r"shape \[1, 24\]"),
        ({}, nan, NonFiniteTensor, "classifier"),
        ({}, two, HeadMismatch, "one of several"),
        ({"config": {"use_qalora": True}}, head(), SourceUnusable, "QALoRA"),
    ]
    for number, (shape, tensors, kind, complaint) in enumerate(cases):
        saved = [name for name in ("classifier", "score") if f"base_model.model.{name}.weight" in tensors]
        config: dict[str, Any] = {"modules_to_save": saved}
        config |= shape.get("config", {})
        folder = write_adapter(
            tmp_path / str(number), shape.get("modules", MODULES), config=config, extra_tensors=tensors
        )
        with pytest.raises(kind, match=complaint):
            open_source("me/a@1", opened(folder), tiny)
    assert issubclass(SourceUnusable, RecycleError)


def test_a_head_file_that_is_no_head_is_refused(tiny: VisionBase, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", MODULES)
    (tmp_path / "head.safetensors").write_bytes(b"no")
    with pytest.raises(HeadMismatch, match="cannot be read"):
        open_source("me/a@1", opened(folder), tiny, head=tmp_path / "head.safetensors")
    save_file({"weight": torch.zeros(3, 24), "scale": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(HeadMismatch, match="found scale, weight"):
        open_source("me/a@1", opened(folder), tiny, head=tmp_path / "head.safetensors")


def test_a_written_lora_is_read_back_and_begins_as_nothing(tiny: VisionBase, tmp_path: Path) -> None:
    lora = new_lora(tiny, ("q_proj", "v_proj"), 4, torch.Generator().manual_seed(0))
    assert set(lora) == set(MODULES)
    assert all(float(f.B.detach().abs().max()) == 0 for f in lora.values())
    assert all(0 < float(f.A.detach().abs().max()) <= 24**-0.5 for f in lora.values())
    config = write_lora(lora, tiny, ("q_proj", "v_proj"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = read_lora("me/new@1", opened(tmp_path), tiny)
    assert all(torch.equal(again[name].A, lora[name].A) for name in lora)


def test_a_target_that_peft_would_find_elsewhere_too_is_written_as_a_pattern(tiny: VisionBase, tmp_path: Path) -> None:
    wider = replace(tiny, modules={**tiny.modules, "q_proj": (24, 24)})  # no ending of a name, but the name itself
    lora = new_lora(wider, ("q_proj",), 2, torch.Generator().manual_seed(0))
    config = write_lora(lora, wider, ("q_proj",), tmp_path)
    asked = LoraConfig(target_modules=config["target_modules"])
    assert {name for name in wider.modules if check_target_module_exists(asked, name)} == set(lora)


def test_sums_and_averages(tiny: VisionBase, tmp_path: Path) -> None:
    adapters = [opened(write_adapter(tmp_path / str(seed), MODULES, seed=seed)) for seed in (1, 2)]
    one, two = (read_lora("x", adapter, tiny) for adapter in adapters)
    name = next(iter(MODULES))
    total = summed([(one, 0.5), (two, -2.0)])[name]
    torch.testing.assert_close(total.B @ total.A, 0.5 * one[name].B @ one[name].A - 2 * two[name].B @ two[name].A)
    mean = averaged([one, two])[name]
    torch.testing.assert_close(mean.A, (one[name].A + two[name].A) / 2)
