"""Sets in vLLM's form against dense arithmetic in float64 and PEFT."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from deltas.adapter import Adapter
from serving.adapter_set import AdapterSet, adapter_set
from serving.base_model import BaseModel, load_info
from serving.errors import AdapterLoadFailed, AdapterModuleMissing, AdapterNotServable
from serving.vllm.export import WEIGHTS_FILE, write_set
from serving.vllm.shelf import Shelf, served_name
from tests.factory import write_adapter

Open = Callable[[str], Adapter]
THREE: AdapterSet = (("a1", -0.5), ("a3", 0.7), ("a5", 0.3))  # ranks 2, 4, 6


def dense_set(adapters: AdapterSet, load: Open) -> dict[str, Tensor]:
    """Module -> Σ weight · ΔW in float64."""
    total: dict[str, Tensor] = {}
    for digest, weight in adapters:
        adapter = load(digest)
        for name in adapter.modules:
            factors = adapter.factors(name)
            delta = weight * factors.B.double() @ factors.A.double()
            total[name] = total.get(name, torch.zeros_like(delta)) + delta
    return total


def dense_folder(folder: Path) -> tuple[dict[str, Tensor], int]:
    """Module -> ΔW of what was written, and its rank; scale is 1 by alpha = r."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    tensors = load_file(folder / WEIGHTS_FILE)
    found = {}
    for key, A in tensors.items():
        if key.endswith(".lora_A.weight"):
            B = tensors[key.replace("lora_A", "lora_B")]
            assert A.shape[0] == B.shape[1] == config["r"]
            found[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = B.double() @ A.double()
    assert len(tensors) == 2 * len(found)
    return found, config["r"]


def members(adapters: AdapterSet, load: Open) -> list[tuple[str, Adapter, float]]:
    return [(digest, load(digest), weight) for digest, weight in adapters]


def test_a_set_within_the_rank_is_exact(tiny_adapters: Open, tmp_path: Path) -> None:
    applied = write_set(members(THREE, tiny_adapters), tmp_path, base="tiny", max_rank=16)
    written, rank = dense_folder(tmp_path)
    expected = dense_set(THREE, tiny_adapters)
    assert (applied.form, applied.rank, applied.energy_lost, rank) == ("cat", 10, 0.0, 10)  # no module is in all three
    assert written.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(written[name], delta, rtol=1e-5, atol=1e-6)


def test_a_set_beyond_the_rank_is_cut_by_its_singular_values_and_says_what_it_lost(
    tiny_adapters: Open, tmp_path: Path
) -> None:
    applied = write_set(members(THREE, tiny_adapters), tmp_path, base="tiny", max_rank=5)
    written, rank = dense_folder(tmp_path)
    total = lost = 0.0
    for name, delta in dense_set(THREE, tiny_adapters).items():
        U, S, Vh = torch.linalg.svd(delta)
        best = (U[:, :5] * S[:5]) @ Vh[:5]
        torch.testing.assert_close(written[name], best, rtol=1e-4, atol=1e-5)
        total, lost = total + float(S.square().sum()), lost + float(S[5:].square().sum())
    assert (applied.form, applied.rank, rank) == ("truncated", 5, 5)
    assert lost > 0
    assert applied.energy_lost == pytest.approx(lost / total, rel=1e-6)


def test_peft_loads_the_folder_and_agrees(tiny_base: BaseModel, tiny_adapters: Open, tmp_path: Path) -> None:
    """Weights, names and config are PEFT's: the same logits as with ΔW added to the weights."""
    ids = torch.arange(3, 40)[None]
    write_set(members(THREE, tiny_adapters), tmp_path, base="tiny", max_rank=16)
    model = type(tiny_base.model)(tiny_base.model.config).double().eval()
    model.load_state_dict(tiny_base.model.state_dict())
    with torch.inference_mode():
        bare = model(ids).logits
        for name, delta in dense_set(THREE, tiny_adapters).items():
            model.get_submodule(name).weight += delta
        expected = model(ids).logits
        model.load_state_dict(tiny_base.model.state_dict())
        served = PeftModel.from_pretrained(model, str(tmp_path)).double().eval()(ids).logits
    assert (expected - bare).abs().max() > 0.1
    torch.testing.assert_close(served, expected, rtol=1e-4, atol=1e-4)


def test_the_empty_set_is_an_update_of_zeros(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    written, rank = dense_folder(shelf.folder / shelf.get(()).name)
    assert rank == 1
    assert [(name, bool(delta.any())) for name, delta in written.items()] == [
        ("model.layers.0.self_attn.q_proj", False)
    ]


@pytest.fixture
def make_shelf(tiny_base: BaseModel, tiny_adapters: Open, tmp_path: Path) -> Callable[..., Shelf]:
    def make(load: Open = tiny_adapters, max_rank: int = 16, max_bytes: int = 1 << 30) -> Shelf:
        return Shelf(tmp_path / "shelf", load_info(tiny_base.folder), load, max_rank=max_rank, max_bytes=max_bytes)

    return make


def test_a_name_means_one_content(make_shelf: Callable[..., Shelf]) -> None:
    pair = adapter_set([("a1", 0.5), ("a2", 0.25)])
    assert served_name(adapter_set([("a2", 0.25), ("a1", 0.2), ("a1", 0.3)]), 16) == served_name(pair, 16)
    others = [(("a1", 0.5),), (("a1", 0.25), ("a2", 0.5)), (("a1", 0.5), ("a3", 0.25))]
    names = {served_name(pair, 16), served_name(pair, 8), *(served_name(other, 16) for other in others)}
    assert len(names) == 5
    shelved = make_shelf().get(pair)
    assert shelved.name == served_name(pair, 16)


def test_a_set_is_written_once_and_read_again(make_shelf: Callable[..., Shelf], tiny_adapters: Open) -> None:
    opened: list[str] = []

    def load(digest: str) -> Adapter:
        opened.append(digest)
        return tiny_adapters(digest)

    first = make_shelf(load, max_rank=5).get(THREE)
    again = make_shelf(load, max_rank=5)  # another process, say
    assert again.get(THREE) == first
    assert opened == ["a1", "a3", "a5"]
    assert first.applied.form == "truncated"
    assert (again.folder / first.name).stat().st_mode & 0o777 == 0o755
    assert [path.name for path in again.folder.iterdir()] == [first.name]


def test_those_used_longest_ago_make_room(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    names = [shelf.get(((f"a{index}", 1.0),)).name for index in range(4)]
    size = sum(path.stat().st_size for path in shelf.folder.glob("*/*"))
    for hours, name in zip((4, 3, 2, 1), names, strict=True):
        past = time.time() - 3600 * hours
        os.utime(shelf.folder / name, (past, past))
    small = make_shelf(max_bytes=size)
    small.get((("a1", 1.0),))  # used again
    fresh = small.get((("a5", 1.0),), keep={names[0]}).name
    assert {path.name for path in shelf.folder.iterdir()} >= {names[0], names[1], fresh}
    assert names[2] not in {path.name for path in shelf.folder.iterdir()}


def test_what_cannot_be_served_is_refused_by_name_and_leaves_nothing(
    make_shelf: Callable[..., Shelf], tiny_base: BaseModel, tmp_path: Path
) -> None:
    def broken(digest: str) -> Adapter:
        raise KeyError(digest)

    with pytest.raises(AdapterLoadFailed, match="a9 could not be loaded: KeyError"):
        make_shelf(broken).get((("a9", 1.0),))
    known = {name: tiny_base.modules[name] for name in list(tiny_base.modules)[:2]}
    dora = {f"base_model.model.{name}.lora_magnitude_vector": torch.ones(shape[0]) for name, shape in known.items()}
    folders = {
        "dora": write_adapter(tmp_path / "dora", known, config={"use_dora": True}, extra_tensors=dora),
        "elsewhere": write_adapter(tmp_path / "elsewhere", {"model.other.q_proj": (6, 8)}),
        "huge": write_adapter(tmp_path / "huge", known, size=1e18),
    }

    def load(digest: str) -> Adapter:
        return Adapter.open(folders[digest] / "adapter_config.json", folders[digest] / "adapter_model.safetensors")

    shelf = make_shelf(load)
    with pytest.raises(AdapterNotServable):
        shelf.get((("dora", 1.0),))
    with pytest.raises(AdapterModuleMissing):
        shelf.get((("elsewhere", 1.0),))
    with pytest.raises(AdapterLoadFailed, match="float32"):
        shelf.get((("huge", 1e30),))
    assert list(shelf.folder.iterdir()) == []
