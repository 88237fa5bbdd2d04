"""The work folder: the option that names it, and the vision base that is found, or made there."""

import argparse
import os
import sys
from pathlib import Path

from merging.recycle.vision_base import DEFAULT_VISION_BASE, VisionBase, ensure_vision_base, load_vision_base

DATA = Path(os.environ.get("SPOLIA_BENCH_DIR", "bench-data"))
INSTALLED = Path(sys.prefix) / "share/spolia/models"


def options(doc: str | None, results: Path | None = None) -> argparse.ArgumentParser:
    """A parser for a script with this docstring; ``results``: where it keeps its rows by default, if it does."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DATA / "recycle", help="work folder (default: %(default)s)")
    if results is not None:
        parser.add_argument("--results", type=Path, default=results, help="file of rows (default: %(default)s)")
    return parser


def vision_base(folder: Path) -> VisionBase:
    """The bundled vision base; one that is not installed is made in the work folder."""
    return load_vision_base(ensure_vision_base(DEFAULT_VISION_BASE, [INSTALLED], folder / "models"))
