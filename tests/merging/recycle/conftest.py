"""A tiny random vision base with transformers' own model of it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Dinov2Model

from merging.recycle.vision_base import VisionBase, ensure_vision_base, load_vision_base
from tests.merging.recycle.tiny import write_tiny_vision


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
