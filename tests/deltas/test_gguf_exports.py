"""Exports for llama.cpp, read back through gguf's own reader and held against the bundled base model's GGUF file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from deltas.adapter import Adapter
from deltas.architecture import Architecture, read_architecture
from deltas.base import FolderWeights
from deltas.base_folder import read_card
from deltas.exporting.export import export_for
from deltas.exporting.gguf_names import CONVERTED, in_file_order, paired_halves, tensor_names
from serving.base_model import DEFAULT_BASE
from serving.bundled import bundled_file
from tests.deltas.llama_shapes import BASE, QV, UNTIED, embedding, opened

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"


def read(file: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """A GGUF file's fields and tensors, these as numpy counts their dimensions."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def runtime_update(fields: dict[str, object], tensors: dict[str, Tensor], name: str) -> Tensor:
    """scale · B A as llama.cpp computes it (src/llama-adapter.h: alpha / rank, the rank being lora_b's)."""
    a, b = tensors[f"{name}.lora_a"].double(), tensors[f"{name}.lora_b"].double()
    alpha = fields["adapter.lora.alpha"]
    assert isinstance(alpha, float)
    return alpha / b.shape[1] * (b @ a)


@pytest.fixture(scope="module")
def smol(base_folder: Path) -> Architecture:
    card = read_card(base_folder)
    found = read_architecture(
        DEFAULT_BASE, base_folder, {name: tuple(sides) for name, sides in card["modules"].items()}
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bundled() -> gguf.GGUFReader:
    """The bundled base model as llama.cpp has it; read once, its vocabulary takes seconds."""
    file = bundled_file(DEFAULT_BASE)
    assert file is not None
    return gguf.GGUFReader(file)


def test_fields_are_those_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    ranks = {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.v_proj": 1}
    adapter = opened(tmp_path / "in", rank=2, rank_pattern=ranks, alpha_pattern={"layers.1.self_attn.q_proj": 9.0})
    export = export_for(adapter, "llama.cpp", tmp_path / "out", base=BASE)
    fields, tensors = read(export.folder / "adapter.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 3.0
    names = tensor_names(BASE)
    assert set(tensors) == {f"{names[module]}.{part}" for module in QV for part in ("lora_a", "lora_b")}
    for module, info in adapter.modules.items():
        original = adapter.factors(module)
        assert tensors[f"{names[module]}.lora_a"].shape == (info.rank, info.in_features)
        found = runtime_update(fields, tensors, names[module])
        expected = in_file_order(original.B.double() @ original.A.double(), module, BASE)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_rows_are_in_the_order_of_the_bundled_files_own(
    base_folder: Path, smol: Architecture, bundled: gguf.GGUFReader
) -> None:
    """The base that serves here was read from this GGUF by transformers, which undoes llama.cpp's order of rows."""
    names, weights = tensor_names(smol), FolderWeights(DEFAULT_BASE, base_folder)
    tensors = {tensor.name: tensor for tensor in bundled.tensors}
    for module in (f"model.layers.7.{place}" for place in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")):
        stored = tensors[names[module]]
        there = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
        here = weights.tensor(f"{module}.weight")
        torch.testing.assert_close(in_file_order(here, module, smol), there, atol=0, rtol=0)
        assert module.endswith("v_proj") or not torch.equal(here, there)


@pytest.mark.parametrize("task", ["adjectives", "dates", "measure"])
def test_an_example_adapter_fits_the_bundled_file(
    tmp_path: Path, smol: Architecture, bundled: gguf.GGUFReader, task: str
) -> None:
    folder = EXAMPLES / task
    adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
    export = export_for(adapter, "llama.cpp", tmp_path / "out", base=smol)
    fields, tensors = read(export.folder / "adapter.gguf")
    base = {tensor.name: tensor for tensor in bundled.tensors}
    assert fields["general.architecture"] == bundled.fields["general.architecture"].contents()
    assert len(tensors) == 2 * len(adapter.modules)
    for name in {name.rpartition(".")[0] for name in tensors}:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        assert (a.shape[1], b.shape[0]) == tuple(base[name].shape)  # [in, out], as llama.cpp checks it


def test_halves_are_paired_within_each_head() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0], [12.0], [13.0]])
    assert paired_halves(rows, 2).flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_an_embedding_is_turned_and_only_where_the_output_layer_has_its_own(tmp_path: Path) -> None:
    export = export_for(embedding(tmp_path / "in"), "llama.cpp", tmp_path / "out", base=UNTIED)
    _, tensors = read(export.folder / "adapter.gguf")
    assert tensors["token_embd.weight.lora_a"].shape == (20, 2)
    assert tensors["token_embd.weight.lora_b"].shape == (8, 2)


def test_every_architecture_has_names_for_its_layers() -> None:
    for kind in CONVERTED:
        names = tensor_names(Architecture("x", kind, 2, 2, 1, True))
        fused = {"Phi3ForCausalLM": ("qkv_proj", "attn_qkv"), "Starcoder2ForCausalLM": ("q_proj", "attn_q")}
        module, tensor = fused.get(kind, ("k_proj", "attn_k"))
        assert names[f"model.layers.1.self_attn.{module}"] == f"blk.1.{tensor}.weight"
        assert names["model.layers.1.mlp.c_proj" if "Starcoder" in kind else "model.layers.1.mlp.down_proj"] == (
            "blk.1.ffn_down.weight"
        )


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    adapter = opened(tmp_path / "in")
    files = [export_for(adapter, "llama.cpp", tmp_path / name, base=BASE).folder / "adapter.gguf" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
