"""Methods against the authors' own code, run once by `fixtures/make_official.py` and kept in `fixtures/official.json`.

Coordinate-wise methods are compared on the dense ΔW, where those implementations work; the others, which see only inner
products, as they run here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltas.factors import Factors
from merging.method import resolve_method
from tests.merging.one_module import apply, close, dense

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "official.json").read_text())
SOURCES = [Factors(torch.tensor(f["A"]), torch.tensor(f["B"])) for f in OFFICIAL["factors"]]


@pytest.mark.parametrize("row", OFFICIAL["rows"], ids=lambda row: row["method"])
def test_equals_the_official_code(row: dict[str, Any]) -> None:
    expected = torch.tensor(row["expected"], dtype=torch.float64)
    sources, weights = SOURCES[: len(row["weights"])], [float(w) for w in row["weights"]]
    method, options = resolve_method(row["method"], row["params"])
    if method.dense:
        found = method.function(torch.stack([dense(f) for f in sources]), weights, **options.model_dump())
    else:
        found, _ = apply(row["method"], sources, weights, sum(f.rank for f in sources), **row["params"])
    close(found, expected, 1e-6)
