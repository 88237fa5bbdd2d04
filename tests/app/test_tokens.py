"""Adapters with added tokens over HTTP: the tokenizer goes up with them, is kept, and comes back with the merge."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.app.service import BASE, Service, problem, small_adapter
from tests.deltas.peft_model import noise

ROWS = 49152  # of the bundled base
DELTA = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def make_grown(base: Path, folder: Path, tokens: Sequence[str], seed: int) -> Path:
    """An adapter whose added tokens have trained rows, as PEFT saves them alone, beside its tokenizer.json."""
    ids = list(range(ROWS, ROWS + len(tokens)))
    config = LoraConfig(r=2, target_modules=["model.layers.3.self_attn.v_proj"], trainable_token_indices=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(ROWS + len(tokens), mean_resizing=False)
        model = get_peft_model(model, config)
        noise(model, seed, 0.05)
        model.peft_config["default"].base_model_name_or_path = BASE
        model.save_pretrained(folder, save_embedding_layers=False)
    made = Tokenizer.from_file(str(base / "tokenizer.json"))
    made.add_tokens(list(tokens))
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("grown")
    return (
        make_grown(base_folder, folder / "a", ["<call>"], 1),
        make_grown(base_folder, folder / "b", ["<think>", "<call>"], 2),
    )


def test_added_tokens_go_in_with_their_tokenizer_and_come_out_united(
    service: Service, tmp_path: Path, adapters: tuple[Path, Path]
) -> None:
    for name, folder in zip("ab", adapters, strict=True):
        version = service.push(f"tok/{name}", folder)
        assert (version["mergeable"], version["servable"]) == (True, False)
        assert "tokenizer.json" in {file["name"] for file in version["files"]}
    recipe = {"name": "tok/both", "sources": ["tok/a", "tok/b"], "weights": [0.25, 0.75], "rank": "sum"}
    plan = service.http.post("/v1/merges?dry_run=true", json=recipe).json()["plan"]
    assert plan["added_tokens"] == [
        {"id": ROWS, "token": "<call>", "sources": ["tok/a@1", "tok/b@1"]},
        {"id": ROWS + 1, "token": "<think>", "sources": ["tok/b@1"]},
    ]
    service.merge(**recipe)
    result = service.download("tok/both@1", tmp_path / "both")
    answer = service.http.get("/v1/adapters/tok/both/versions/1/files/tokenizer.json")
    (result / "tokenizer.json").write_bytes(answer.content)
    ids = Tokenizer.from_file(str(result / "tokenizer.json")).encode("a<think>b<call>").ids
    assert (ids[1], ids[3]) == (ROWS + 1, ROWS)
    rows = [load_file(folder / "adapter_model.safetensors")[DELTA] for folder in adapters]
    expected = torch.stack([0.25 * rows[0][0] + 0.75 * rows[1][1], rows[1][0]])
    found = load_file(result / "adapter_model.safetensors")[DELTA]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    asked = json.loads((result / "adapter_config.json").read_text())["trainable_token_indices"]
    assert asked == {"model.embed_tokens": [ROWS, ROWS + 1]}
    report = service.http.get("/v1/adapters/tok/both/versions/1/report").json()
    assert report["added_tokens"] == plan["added_tokens"]
    job = service.wait(service.http.post("/v1/adapters/tok/both/versions/1/verify").json())
    assert job["result"]["outcome"] == "identical"
    refused = service.http.post("/v1/completions", json={"model": "tok/both", "prompt": "a"})
    assert refused.status_code == 422
    assert "embed_tokens" in refused.json()["detail"]


def test_without_a_tokenizer_the_version_is_kept_and_says_what_is_missing(
    service: Service, tmp_path: Path, adapters: tuple[Path, Path]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / name).write_bytes((adapters[0] / name).read_bytes())
    version = service.push("tok/bare", bare)
    assert not version["mergeable"]
    assert "upload its tokenizer.json with it" in version["notes"][0]
    refused = service.http.post("/v1/merges", json={"name": "tok/none", "sources": ["tok/bare"]})
    assert "upload its tokenizer.json" in problem(refused, 422, "not-mergeable")["detail"]
    (bare / "tokenizer.json").write_bytes((adapters[0] / "tokenizer.json").read_bytes())
    assert service.push("tok/bare", bare)["version"] == 2  # the tokenizer is part of what a version is


@pytest.mark.parametrize("held", [False, True])
def test_tokens_without_rows_are_kept_with_a_note(
    service: Service, base_folder: Path, tmp_path: Path, held: bool
) -> None:
    bare = small_adapter(tmp_path / "small")
    made = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    made.add_tokens(["<call>", "<think>"] if held else ["<|im_start|>"])  # the last is one of the base's own
    made.save(str(bare / "tokenizer.json"))
    version = service.push(f"tok/rowless-{held}", bare)
    assert (version["mergeable"], version["servable"]) == (True, True)
    said = [note for note in version["notes"] if "tokenizer.json" in note]
    assert len(said) == held
    assert all("adds '<call>' (2 such tokens), but its weights hold no row" in note for note in said)


def test_tokens_with_rows_need_no_note(service: Service, adapters: tuple[Path, Path]) -> None:
    assert not any("hold no row" in note for note in service.push("tok/rows", adapters[1])["notes"])


def test_both_ways_of_uploading_give_the_same_version(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "small")
    document = {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=4))
    first = service.push("tok/ways", folder)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert service.http.put(f"/v1/uploads/{digest}", content=weights).status_code == 200
    config = json.loads((folder / "adapter_config.json").read_text())
    for tokenizer in (document, json.dumps(document)):
        body = {"config": config, "weights": f"sha256:{digest}", "tokenizer": tokenizer}
        again = service.http.post("/v1/adapters/tok/ways/versions", json=body)
        assert (again.status_code, again.json()["ref"]) == (200, first["ref"])
    other = {**document, "added_tokens": [{"id": 1, "content": "<x>"}]}
    body = {"config": config, "weights": f"sha256:{digest}", "tokenizer": other}
    assert service.http.post("/v1/adapters/tok/ways/versions", json=body).json()["version"] == 2


def test_a_tokenizer_that_is_none_is_refused_in_a_sentence(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "small")
    before = service.stored()
    (folder / "tokenizer.json").write_bytes(b"{")
    assert problem(service.upload("tok/bad", folder), 422, "bad-tokenizer")["field"] == "tokenizer"
    (folder / "tokenizer.json").write_bytes(b" " * (9 << 20))
    problem(service.upload("tok/bad", folder), 413, "body-too-large")
    assert service.stored() == before
