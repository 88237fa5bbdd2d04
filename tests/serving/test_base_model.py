"""Base model folders: made once, whole, and known by a fingerprint."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM

from deltas.base_folder import folder_name, read_card
from serving.base_model import DEFAULT_BASE, BaseModel, ensure_base, load_base
from serving.errors import BaseUnavailable, BaseUnsupported
from tests.serving.conftest import write_tiny_llama


def test_the_bundled_model_is_a_plain_transformers_folder(base_folder: Path) -> None:
    card = read_card(base_folder)
    assert card["name"] == DEFAULT_BASE
    assert card["context_length"] == 8192
    assert card["modules"]["model.layers.29.mlp.down_proj"] == [576, 1536]
    assert card["modules"]["model.layers.0.self_attn.k_proj"] == [192, 576]
    assert len(card["modules"]) == 30 * 7 + 1
    assert card["embeddings"] == {"model.embed_tokens": [49152, 576]}
    assert "lm_head.weight" not in load_file(base_folder / "model.safetensors"), "tied weights are kept once"


def test_a_folder_that_exists_is_found_and_not_made_again(base_folder: Path, tmp_path: Path) -> None:
    before = (base_folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_base(DEFAULT_BASE, [tmp_path / "absent", base_folder.parent], tmp_path / "target") == base_folder
    assert (base_folder / "model.safetensors").stat().st_mtime_ns == before
    assert not (tmp_path / "target").exists()


def test_a_local_folder_is_linked_and_loads(tiny_base: BaseModel) -> None:
    assert (tiny_base.folder / "model.safetensors").is_symlink()
    assert tiny_base.modules["model.layers.2.mlp.up_proj"] == (56, 40)
    assert (tiny_base.context_length, tiny_base.vocabulary, tiny_base.eos_ids) == (96, 49152, frozenset({2}))
    assert tiny_base.model.lm_head.weight is tiny_base.model.model.embed_tokens.weight


def test_a_plain_folder_in_a_search_place_is_found_by_its_name(base_folder: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "places" / folder_name("someone/tiny"), base_folder)
    made = ensure_base("someone/tiny", [tmp_path / "places"], tmp_path / "target")
    assert made == tmp_path / "target" / "someone--tiny"
    assert load_base(made).name == "someone/tiny"


def test_the_fingerprint_follows_the_weights_not_their_dtype(base_folder: Path, tmp_path: Path) -> None:
    plain = write_tiny_llama(tmp_path / "plain", base_folder)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(plain / "model.safetensors").items()}
    prints = []
    for number, change in enumerate((torch.bfloat16, torch.float32, None)):
        other = write_tiny_llama(tmp_path / f"other{number}", base_folder)
        changed = {name: tensor.to(change or torch.float32) for name, tensor in weights.items()}
        if change is None:
            changed["model.norm.weight"] = changed["model.norm.weight"] * 2
        save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
        prints.append(read_card(ensure_base(str(other), [], tmp_path / "models"))["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_making_it_twice_at_once_leaves_one_whole_folder(base_folder: Path, tmp_path: Path) -> None:
    plain = write_tiny_llama(tmp_path / "plain", base_folder)
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(ensure_base(str(plain), [], tmp_path / "m"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "m" / "plain"] * 3
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["plain"]


def test_an_unknown_model_is_refused_with_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailable, match=str(tmp_path)) as caught:
        ensure_base("not a name that any hub has", [], tmp_path)
    assert "Put a transformers folder" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_attention_caches_is_refused(tmp_path: Path) -> None:
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)).save_pretrained(
        tmp_path / "mamba"
    )
    with pytest.raises(BaseUnsupported, match="mamba"):
        ensure_base(str(tmp_path / "mamba"), [], tmp_path / "models")
