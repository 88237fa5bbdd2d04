"""What tests of several rooms share: the real base model, converted once per environment."""

import sys
from pathlib import Path

import pytest

from serving.base_model import DEFAULT_BASE, ensure_base


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The folder of the bundled base model."""
    return ensure_base(DEFAULT_BASE, [], Path(sys.prefix) / "share" / "spolia" / "models")
