"""What tests of several rooms share: the real base model, converted once per environment."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

from serving.base_model import DEFAULT_BASE, ensure_base

# Examples are not timed: shared machines are slow at random. A hang is caught by the suite's own time limit.
settings.register_profile("spolia", deadline=None, print_blob=True)
settings.load_profile("spolia")


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The folder of the bundled base model."""
    return ensure_base(DEFAULT_BASE, [], Path(sys.prefix) / "share" / "spolia" / "models")
