"""Tiny random bases of images and of texts, transformers' own model of the first, and the bundled vision base."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from merging.recycle.text_base import TextBase, load_text_base
from merging.recycle.vision_base import DEFAULT_VISION_BASE, VisionBase, ensure_vision_base, load_vision_base
from serving.base_model import ensure_base
from tests.merging.recycle.words import write_text_base


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: 3 blocks of width 24, patches of 4 pixels, 5×5 of them when it was made."""
    folder = tmp_path_factory.mktemp("vision") / "plain"
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=4,
            initializer_range=0.3,
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if "lambda1" in name or "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionBase:
    return load_vision_base(ensure_vision_base(str(tiny_folder), [], tmp_path_factory.mktemp("bases")))


@pytest.fixture(scope="session")
def oracle(tiny_folder: Path) -> Any:
    """transformers' own model of the tiny base."""
    return Dinov2Model.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def bundled() -> VisionBase:
    """The bundled vision base, converted once per environment."""
    folder = ensure_vision_base(DEFAULT_VISION_BASE, [], Path(sys.prefix) / "share" / "spolia" / "models")
    return load_vision_base(folder)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a tiny random Llama with a tokenizer of whole words."""
    return write_text_base(tmp_path_factory.mktemp("text") / "plain")


@pytest.fixture(scope="session")
def tiny_text(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextBase:
    return load_text_base(ensure_base(str(text_folder), [], tmp_path_factory.mktemp("text-bases")))
