"""Reading one adapter as the service does at upload, merge and serving: to its end, or to a sentence of `deltas`."""

import contextlib
import json
from pathlib import Path

import torch

from deltas.adapter import Adapter
from deltas.errors import DeltaError
from deltas.header import read_header
from tests.fuzz.mutations import Case


def read(case: Case, folder: Path) -> str:
    """What became of the case: "read", or the name of the error that refused it. Anything else is raised."""
    (folder / "adapter_config.json").write_bytes(case.config)
    weights = folder / "adapter_model.safetensors"
    weights.unlink(missing_ok=True)  # a new file: a map of the last case's may still be open
    weights.write_bytes(case.weights)
    with contextlib.suppress(DeltaError):
        read_header(weights)  # also where the config is refused first
    try:
        adapter = Adapter.open(folder / "adapter_config.json", weights)
        described = (adapter.family, adapter.dtype, adapter.parameters, adapter.obstacles)
        assert all(0 < len(sentence) < 2000 for sentence in described[3])
        json.dumps(described, ensure_ascii=False).encode()  # an answer in JSON has to carry it
        adapter.check_base("tiny/base", {name: (m.out_features, m.in_features) for name, m in adapter.modules.items()})
        adapter.check_finite()
        for name, module in adapter.modules.items():
            factors = adapter.factors(name)
            assert factors.A.shape == (module.rank, module.in_features)
            assert factors.B.shape == (module.out_features, module.rank)
            assert torch.isfinite(factors.A).all()
            assert torch.isfinite(factors.B).all()
    except DeltaError as error:
        sentence = str(error)
        assert 0 < len(sentence) < 5000
        sentence.encode()
        return type(error).__name__
    return "read"
