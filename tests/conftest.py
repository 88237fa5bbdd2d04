"""What tests of several rooms share: the real base models, converted once per environment; a real PostgreSQL."""

import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from app.quick_start import loading
from merging.recycle.vision_base import DEFAULT_VISION_BASE, VisionBase, ensure_vision_base, load_vision_base
from serving.base_model import DEFAULT_BASE, ensure_base
from tests.object_store import ObjectStore, object_store
from tests.postgres import Server, running_server

pytest_plugins = ["tests.sharing_out"]

# Examples are not timed: shared machines are slow at random. A hang is caught by the suite's own time limit.
settings.register_profile("spolia", deadline=None, print_blob=True)
settings.load_profile("spolia")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the tests' modules bring along stays to the end."""
    with loading():
        return (yield)


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The folder of the bundled base model."""
    return ensure_base(DEFAULT_BASE, [], Path(sys.prefix) / "share" / "spolia" / "models")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server."""
    with object_store(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server, started when the first test asks for it."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def bundled() -> VisionBase:
    """The bundled vision base, converted once per environment."""
    folder = ensure_vision_base(DEFAULT_VISION_BASE, [], Path(sys.prefix) / "share" / "spolia" / "models")
    return load_vision_base(folder)
