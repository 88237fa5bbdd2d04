"""Vision bases: converted, found, read in the spellings of two times, refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from deltas.base import FolderWeights
from deltas.base_folder import read_card
from merging.recycle.bundled_vision import BUNDLED_NAME, bundled_onnx, convert_onnx
from merging.recycle.errors import VisionBaseUnavailable, VisionBaseUnsupported
from merging.recycle.vision_base import VisionBase, ensure_vision_base, load_vision_base


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def after_ten_blocks(pixels: torch.Tensor) -> torch.Tensor:
    """What onnxruntime computes up to where the eleventh block begins: [1, 257, 384]."""
    file = bundled_onnx(BUNDLED_NAME)
    assert file is not None
    model = onnx.load(file)
    begin = next(node for node in model.graph.node if "/layer.10/norm1/" in node.name)
    model.graph.output.append(onnx.helper.make_tensor_value_info(begin.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run([begin.input[0]], {"input_image": pixels.numpy()})
    return torch.from_numpy(np.asarray(found))


def test_the_bundled_base_computes_what_onnxruntime_does(
    bundled: VisionBase, pixels: torch.Tensor, after_ten_blocks: torch.Tensor
) -> None:
    with torch.no_grad():
        found = bundled.network(pixels).embedding
        wanted = bundled.network._norm(after_ten_blocks, "layernorm")[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)


def test_the_bundled_base_is_a_plain_transformers_folder(bundled: VisionBase, pixels: torch.Tensor) -> None:
    model: Any = Dinov2Model.from_pretrained(bundled.folder).eval()
    with torch.no_grad():
        wanted = model(pixels[:, :, :112, :112]).pooler_output
        found = bundled.network(pixels[:, :, :112, :112]).embedding
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)
    card = read_card(bundled.folder)
    assert card["name"] == BUNDLED_NAME
    assert card["modules"]["encoder.layer.9.mlp.fc1"] == [1536, 384]
    assert len(card["modules"]) == 60


def test_adapters_find_its_weights_under_their_modules_names(bundled: VisionBase) -> None:
    weights = FolderWeights(bundled.name, bundled.folder)
    assert all(weights.shape(f"{name}.weight") == shape for name, shape in bundled.modules.items())


def test_a_folder_that_exists_is_found_and_not_made_again(bundled: VisionBase, tmp_path: Path) -> None:
    assert ensure_vision_base(BUNDLED_NAME, [bundled.folder.parent], tmp_path) == bundled.folder
    assert not list(tmp_path.iterdir())


def test_all_blocks_can_be_converted(tmp_path: Path) -> None:
    file = bundled_onnx(BUNDLED_NAME)
    assert file is not None
    convert_onnx(file, tmp_path, blocks=12)
    model: Any = Dinov2Model.from_pretrained(tmp_path)
    assert sum(weight.numel() for weight in model.parameters()) == 22_056_576


def test_the_fingerprint_follows_the_weights(tiny: VisionBase, tiny_folder: Path, tmp_path: Path) -> None:
    again = load_vision_base(ensure_vision_base(str(tiny_folder), [], tmp_path / "again"))
    assert again.fingerprint == tiny.fingerprint
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: t + 1 if name == "layernorm.bias" else t for name, t in tensors.items()}, other / "model.safetensors"
    )
    assert load_vision_base(ensure_vision_base(str(other), [], tmp_path / "bases")).fingerprint != tiny.fingerprint


def test_names_of_an_earlier_transformers_and_of_a_classifier_are_read(
    tiny: VisionBase, tiny_folder: Path, tmp_path: Path
) -> None:
    old = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    tensors = {}
    for name, tensor in tiny.network.weights.items():
        for new, earlier in old.items():
            name = name.replace(f"attention.{new}", f"attention.{earlier}")
        tensors[f"dinov2.{name}"] = tensor
    folder = shutil.copytree(tiny_folder, tmp_path / "earlier")
    save_file({**tensors, "classifier.weight": torch.zeros(2, 48)}, folder / "model.safetensors")
    earlier_base = load_vision_base(ensure_vision_base(str(folder), [], tmp_path / "bases"))
    images = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(earlier_base.network(images).embedding, tiny.network(images).embedding)
    assert earlier_base.modules == tiny.modules


def test_what_is_not_here_or_of_another_kind_is_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VisionBaseUnavailable, match="'someone/else' is not here"):
        ensure_vision_base("someone/else", [], tmp_path)
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    for changes, complaint in (
        ({"model_type": "clip"}, "'clip' model"),
        ({"use_swiglu_ffn": True}, "another MLP"),
        ({"hidden_size": None}, "config.json"),
        ({"num_hidden_layers": 4}, "encoder.layer.3"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(VisionBaseUnsupported, match=complaint):
            ensure_vision_base(str(folder), [], tmp_path / "bases")
    assert not list((tmp_path / "bases").iterdir()), "nothing half-made stays"


def test_pixels_are_normalised_and_back(tiny: VisionBase) -> None:
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(tiny.pixels(tiny.normalised(pixels)), pixels)
    low, high = tiny.limits
    torch.testing.assert_close(tiny.pixels(low[None]), torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(tiny.pixels(high[None]), torch.ones(1, 3, 1, 1))
