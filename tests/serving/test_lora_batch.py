"""Sets as concatenated ranks give what dense float64 updates give."""

import copy
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltas.adapter import Adapter
from serving.adapter_set import AdapterSet, adapter_set
from serving.base_model import BaseModel
from serving.errors import AdapterModuleMissing, AdapterNotServable, AdapterShapeMismatch
from serving.lora_batch import LoraBatch
from serving.resident import check_servable, make_resident
from tests.factory import write_adapter

NAMES = [f"a{index}" for index in range(6)]
SETS = st.lists(st.tuples(st.sampled_from(NAMES), st.floats(-2, 2)), max_size=4).map(adapter_set)
ONE, TWO = (("a1", 1.0),), (("a2", 0.5),)
IDS = torch.tensor([[5, 17, 301, 8], [99, 1, 5, 4021], [7, 7, 23, 2000], [640, 11, 3, 12]])


def _dense(base: BaseModel, adapters: Callable[[str], Adapter], one: AdapterSet, ids: Tensor) -> Tensor:
    """Logits of a copy of the model whose weights were changed by the whole set."""
    model = copy.deepcopy(base.model)
    for digest, weight in one:
        adapter = adapters(digest)
        for name in adapter.modules:
            factors = adapter.factors(name).to(torch.float64)
            model.get_submodule(name).weight.add_(weight * factors.B @ factors.A)
    return model(ids[None]).logits[0]


@pytest.mark.parametrize("kernel", [True, False], ids=["rows", "stack"])
@given(st.lists(st.tuples(st.lists(SETS, min_size=4, max_size=4), st.booleans()), min_size=1, max_size=3))
@example([([ONE, TWO, ONE, TWO], False), ([ONE] * 4, False), ([TWO, ONE, ONE, TWO], False)])  # one set for a while
@settings(max_examples=15, deadline=None)
def test_every_row_gets_exactly_its_own_set(
    kernel: bool,
    tiny_base: BaseModel,
    tiny_adapters: Callable[[str], Adapter],
    batches: list[tuple[list[AdapterSet], bool]],
) -> None:
    residents = {name: make_resident(name, tiny_adapters(name), tiny_base) for name in NAMES}
    lora = LoraBatch(tiny_base.model)
    with torch.inference_mode(), patch("serving.lora_batch.runs_on", return_value=kernel):
        try:
            for sets, many_tokens in batches:  # one after another: stacks are reused where they fit
                lora.apply(sets, residents, many_tokens=many_tokens)
                logits = tiny_base.model(IDS).logits
                lora.remove()
                for row, one in enumerate(sets):
                    assert torch.allclose(logits[row], _dense(tiny_base, tiny_adapters, one, IDS[row]), atol=1e-7)
        finally:
            lora.remove()


def test_adapters_stored_in_16_bits_are_served_as_they_are(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Beside others, with scales of their own for every module, and in half the memory."""
    modules = {name: shape for name, shape in tiny_base.modules.items() if name != "lm_head"}  # tied to the embeddings
    opened = {}
    for number, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32)):
        folder = tmp_path / str(dtype)
        own_rank = dict.fromkeys(list(modules)[:3], 6)
        write_adapter(folder, modules, rank=4, alpha=7.0, rank_pattern=own_rank, dtype=dtype, size=0.2, seed=number)
        opened[f"a{number}"] = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
    residents = {name: make_resident(name, adapter, tiny_base) for name, adapter in opened.items()}
    assert residents["a0"].size_bytes == residents["a1"].size_bytes == residents["a2"].size_bytes / 4  # base: float64
    sets: list[AdapterSet] = [
        (("a0", 1.0),), (("a0", -0.5), ("a1", 2.0)), (("a1", 1.0), ("a2", 0.25)), (("a0", 1.0), ("a1", 1.0))
    ]  # fmt: skip
    lora = LoraBatch(tiny_base.model)
    with torch.inference_mode():
        for many_tokens in (True, False):
            lora.apply(sets, residents, many_tokens=many_tokens)
            logits = tiny_base.model(IDS).logits
            last = tiny_base.model(IDS[:, :1]).logits
            lora.remove()
            for row, one in enumerate(sets):
                expected = _dense(tiny_base, opened.__getitem__, one, IDS[row])
                assert torch.allclose(logits[row], expected, atol=1e-5)
                assert torch.allclose(last[row], expected[:1], atol=1e-5)


def test_no_set_is_the_bare_base_and_weights_are_never_touched(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_base.model.state_dict().items()}
    with torch.inference_mode():
        bare = tiny_base.model(IDS).logits
        lora = LoraBatch(tiny_base.model)
        lora.apply([(("a1", 1.0),), (), (), ()], {"a1": make_resident("a1", tiny_adapters("a1"), tiny_base)})
        mixed = tiny_base.model(IDS).logits
        lora.apply([(), (), (), ()], {})
        after = tiny_base.model(IDS).logits
    assert torch.equal(bare, after)
    assert not torch.allclose(mixed[0], bare[0], atol=1e-3)
    assert torch.allclose(mixed[1:], bare[1:], atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_base.model.state_dict().items())


def test_a_lone_adapter_at_weight_one_is_not_copied(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    resident = make_resident("a0", tiny_adapters("a0"), tiny_base)
    lora = LoraBatch(tiny_base.model)
    with patch("serving.lora_batch.runs_on", return_value=False):  # as on a GPU
        lora.apply([(("a0", 1.0),)] * 3, {"a0": resident})
    (stack,) = lora._stacks.values()
    lora.remove()
    assert all(stack.modules[name].A is factors.A for name, factors in resident.modules.items())


def test_the_canonical_set_adds_repeats_and_drops_zeros() -> None:
    assert adapter_set([("b", 1.0), ("a", 0.5), ("b", -0.25), ("c", 0.0), ("d", 1.0), ("d", -1.0)]) == (
        ("a", 0.5),
        ("b", 0.75),
    )


def _check(base: BaseModel, folder: Path, modules: dict[str, tuple[int, int]], **config: object) -> None:
    write_adapter(folder, modules, config=config)
    adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
    check_servable("sha256:0", adapter, base.name, base.modules)


def test_an_adapter_that_does_not_fit_is_refused_by_name(tiny_base: BaseModel, tmp_path: Path) -> None:
    fits = {"model.layers.0.mlp.up_proj": (56, 40)}
    _check(tiny_base, tmp_path / "fits", fits)
    with pytest.raises(AdapterModuleMissing, match=r"model\.layers\.7\.mlp\.up_proj"):
        _check(tiny_base, tmp_path / "missing", {**fits, "model.layers.7.mlp.up_proj": (56, 40)})
    with pytest.raises(AdapterShapeMismatch, match=r"as 40x56 \(out x in\).* it is 56x40"):
        _check(tiny_base, tmp_path / "turned", {"model.layers.0.mlp.up_proj": (40, 56)})
    with pytest.raises(AdapterNotServable, match="lora"):
        _check(tiny_base, tmp_path / "qalora", fits, use_qalora=True)
