"""Subspace methods against what their authors' own code returned (`fixtures/make_subspace.py` made it)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltas.factors import Factors
from tests.merging.one_module import apply, close

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "fixtures" / "subspace.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['method']}-{len(case['sources'])}-{case['params']}")
def test_equals_the_authors_code(case: dict[str, Any]) -> None:
    sources = [Factors(torch.tensor(s["A"]), torch.tensor(s["B"])) for s in case["sources"]]
    found, _ = apply(case["method"], sources, [1.0] * len(sources), case["rank"], **case["params"])
    close(found, torch.tensor(case["expected"], dtype=torch.float64))
