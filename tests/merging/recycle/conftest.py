"""Tiny random bases of images and of texts, and transformers' own model of the first."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Dinov2Model

from merging.recycle.text_base import TextBase, load_text_base
from merging.recycle.vision_base import VisionBase, ensure_vision_base, load_vision_base
from serving.base_model import ensure_base
from tests.merging.recycle.tiny import write_tiny_vision
from tests.merging.recycle.words import write_text_base


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformers folder of the tiny base."""
    return write_tiny_vision(tmp_path_factory.mktemp("vision") / "plain")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionBase:
    return load_vision_base(ensure_vision_base(str(tiny_folder), [], tmp_path_factory.mktemp("bases")))


@pytest.fixture(scope="session")
def oracle(tiny_folder: Path) -> Any:
    """transformers' own model of the tiny base."""
    return Dinov2Model.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a tiny random Llama with a tokenizer of whole words."""
    return write_text_base(tmp_path_factory.mktemp("text") / "plain")


@pytest.fixture(scope="session")
def tiny_text(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextBase:
    return load_text_base(ensure_base(str(text_folder), [], tmp_path_factory.mktemp("text-bases")))
