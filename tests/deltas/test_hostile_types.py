"""Files that claim to be of PEFT's other types, or in another spelling, but are not: refused with a sentence."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.errors import DeltaError
from deltas.families import FAMILIES
from deltas.header import read_header
from deltas.spellings import respelt_config, written_config
from tests.deltas.peft_model import tiny_llama

TYPES = {"ia3": "IA3", "miss_bat": "MISS", "bone_bat": "BONE"}
FAMILY = {
    family.name: family
    for family in FAMILIES
    if family.name in ("ia3", "miss", "miss_bat", "bone", "bone_bat", "hira", "glora", "loha", "lokr", "vera")
}
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head", "other")
SIDES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 24, 40])
SHAPES = st.lists(SIDES, max_size=4).map(tuple)
VALUES: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.sampled_from(
    ["bat", "mini", "vector", "", "q_proj"]
)  # fmt: skip
FIELDS = ("r", "alpha", "mini_r", "init_weights", "projection_prng_key", "rank_pattern", "feedforward_modules")
PATHS = ("lora_unet_down_blocks_0_attn1_to_q", "lora_te_", "lycoris_x", "unet.a.processor", "text_encoder.b.self_attn")
ENDS = (
    "lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "lora_mid.weight", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_b", "lora.up.weight",
    "lora.down.weight", "to_q_lora.up.weight", "to_q_lora.down.weight", "lora_A.weight", "lora_B.weight", "diff",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FolderWeights:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return FolderWeights("tiny/base", folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "adapter_model.safetensors"


@pytest.mark.parametrize("name", FAMILY)
@given(data=st.data())
def test_a_type_is_read_or_refused(name: str, weights: Path, base: FolderWeights, data: st.DataObject) -> None:
    family = FAMILY[name]
    rank = data.draw(st.integers(1, 4), label="rank")
    sides = st.one_of(SHAPES, st.permutations([rank, 16]).map(tuple), st.just((16, 1)), st.just((rank,)))
    keys = data.draw(st.lists(st.tuples(st.sampled_from(MODULES), st.sampled_from([*family.parts])), min_size=1))
    tensors = {f"base_model.model.{m}.{part}": torch.ones(data.draw(sides, label=part)) for m, part in set(keys)}
    tensors |= {f"base_model.{p}": torch.ones(data.draw(sides)) for p in family.shared if data.draw(st.booleans())}
    save_file(tensors, weights)
    config = {field: data.draw(VALUES, label=field) for field in data.draw(st.sets(st.sampled_from(FIELDS)))}
    config = {"r": rank, "alpha": 2, "target_modules": [*MODULES], **config}
    config["peft_type"] = TYPES.get(name, name.upper())
    with contextlib.suppress(DeltaError):  # anything else that is raised fails the test
        adapter = Adapter.open(config, weights)
        for module in adapter.with_base(base).modules if not adapter.with_base(base).obstacles else ():
            factors = adapter.with_base(base).factors(module)
            assert factors.rank <= adapter.with_base(base).modules[module].rank
        bound = adapter.with_base(base)
        for module in bound.modules if not bound.unread else ():
            forms, layout = bound.forms(module), bound.layout(module)
            held = [*forms[1:], *((forms.factors.A, forms.factors.B) if forms.factors else ())]
            assert sum(tensor.numel() for tensor in held if tensor is not None) <= layout.entries


@given(data=st.data())
def test_bare_weights_are_read_or_refused(weights: Path, data: st.DataObject) -> None:
    keys = data.draw(st.sets(st.tuples(st.sampled_from(PATHS), st.sampled_from(ENDS)), min_size=1, max_size=6))
    kinds = st.one_of(SHAPES, st.just((2, 16)), st.just((16, 2)), st.just(()))
    values = st.sampled_from([1.0, 0.0, float("nan"), -3.0])
    tensors = {
        f"{path}.{end}": torch.full(data.draw(kinds, label=end), data.draw(values)) for path, end in sorted(keys)
    }
    save_file(tensors, weights)
    with contextlib.suppress(DeltaError):
        header = read_header(weights)
        config = written_config(weights, header, None)
        assert respelt_config(config, header) is None
        adapter = Adapter.open(config, weights)
        for module in adapter.modules if not adapter.obstacles else ():
            adapter.factors(module)
