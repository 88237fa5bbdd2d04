"""The short way from file to memory gives what the general one gives, for every dtype, rank and scale."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from deltas.adapter import Adapter
from deltas.errors import BadFile
from serving.plain_lora import held_dtype, is_plain, read_plain
from serving.resident import served_size
from tests.factory import TINY, write_adapter

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CPU = torch.device("cpu")


def _open(folder: Path) -> Adapter:
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


@settings(max_examples=40)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.integers(1, 4),
    st.floats(-8, 8).filter(lambda alpha: abs(alpha) > 1e-3),
    st.booleans(),
    st.integers(0, 99),
)
def test_it_is_the_general_path_to_the_bit_or_the_file_and_the_scaled_product(
    tmp_path_factory: pytest.TempPathFactory,
    stored: torch.dtype,
    served: torch.dtype,
    rank: int,
    alpha: float,
    rslora: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    pattern = {"model.layers.0.v_proj": rank + 1}
    write_adapter(folder, rank=rank, alpha=alpha, use_rslora=rslora, rank_pattern=pattern, dtype=stored, seed=seed)
    adapter = _open(folder)
    assert is_plain(adapter)
    found = read_plain(adapter, served, CPU)
    file = load_file(folder / "adapter_model.safetensors")
    assert found.keys() == TINY.keys()
    as_stored = stored.itemsize == 2 and served.itemsize > 2
    assert held_dtype(adapter, served, CPU) == (stored if as_stored else served)
    for name, (A, Bt, left) in found.items():
        raw_A, raw_B = (file[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        own = rank + 1 if name in pattern else rank
        scale = alpha / (own**0.5 if rslora else own)
        assert A.dtype == Bt.dtype == held_dtype(adapter, served, CPU)
        assert A.is_contiguous()
        assert Bt.is_contiguous()
        if as_stored:
            assert torch.equal(A, raw_A)
            assert torch.equal(Bt, raw_B.T)
            assert left == pytest.approx(scale)
            continue
        assert left == 1
        general = adapter.factors(name)
        assert torch.equal(A, general.A.to(served))
        assert torch.equal(Bt, general.B.T.to(served))
        if torch.float16 not in (stored, served):  # where small numbers vanish
            rounding = 6 * max(torch.finfo(served).eps, torch.finfo(torch.float32).eps)
            largest = scale * (raw_B.double().abs() @ raw_A.double().abs())
            error = (Bt.double().T @ A.double() - scale * (raw_B.double() @ raw_A.double())).abs()
            assert bool((error <= rounding * largest.abs()).all())


def test_all_of_it_lies_in_one_buffer_of_its_size(tmp_path: Path) -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        folder = tmp_path / str(dtype)
        write_adapter(folder, rank=3, dtype=dtype)
        adapter = _open(folder)
        parts = [part for A, Bt, _ in read_plain(adapter, torch.float32, CPU).values() for part in (A, Bt)]
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        assert list(storages.values()) == [sum(part.numel() for part in parts) * size]
        assert list(storages.values()) == [served_size(adapter, torch.float32, CPU)]


def test_other_adapters_take_the_general_path(tmp_path: Path) -> None:
    extra = {"base_model.model.model.layers.0.q_proj.lora_magnitude_vector": torch.ones(6)}
    modules = {"model.layers.0.q_proj": (6, 8)}
    write_adapter(tmp_path / "dora", modules, config={"use_dora": True}, extra_tensors=extra)
    write_adapter(tmp_path / "half", modules)
    mixed = {f"base_model.model.model.layers.1.q_proj.lora_{part}.weight": torch.ones(2, 2).half() for part in "AB"}
    write_adapter(tmp_path / "mixed", modules, extra_tensors=mixed)
    assert not is_plain(_open(tmp_path / "dora"))
    assert is_plain(_open(tmp_path / "half"))
    assert not is_plain(_open(tmp_path / "mixed"))


def test_a_file_that_was_cut_since_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    adapter = _open(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BadFile, match="ends 5 bytes before"):
        read_plain(adapter, torch.float32, CPU)
