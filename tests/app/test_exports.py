"""Verdicts and exports over HTTP."""

import io
import json
import zipfile
from pathlib import Path

import gguf
import pytest
from safetensors.torch import load

from tests.app.service import Service, dora_adapter, problem, small_adapter


@pytest.fixture(scope="module")
def shelf(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x/plain, x/dora, x/strange of an unknown base, and x/two whose first version is another rank's."""
    folder = tmp_path_factory.mktemp("exports")
    service.push("x/plain", small_adapter(folder / "plain", rank=3, alpha=6.0, use_rslora=True))
    service.push("x/dora", dora_adapter(folder / "dora", rank=2))
    service.push("x/strange", small_adapter(folder / "strange", base="acme/unknown"))
    service.push("x/two", small_adapter(folder / "one", rank=2))
    service.push("x/two", small_adapter(folder / "two", rank=4))
    return folder


def url(name: str, version: int | str = 1) -> str:
    return f"/v1/adapters/x/{name}/versions/{version}"


def words(service: Service, path: str) -> dict[str, str]:
    found = service.http.get(path)
    assert found.status_code == 200, found.text
    return {verdict["target"]: verdict["verdict"] for verdict in found.json()["verdicts"]}


def test_every_runtime_has_its_verdict(service: Service, shelf: Path) -> None:
    plain = service.http.get(f"{url('plain')}/compatibility").json()
    assert plain["ref"] == "x/plain@1"
    assert plain["digest"].startswith("sha256:")
    verdicts = {verdict["target"]: verdict for verdict in plain["verdicts"]}
    assert list(verdicts) == ["llama.cpp", "sglang", "tgi", "vllm"]
    assert verdicts["vllm"] == {
        "target": "vllm", "version": "0.32.0", "verdict": "unchanged", "loads_unchanged": True,
        "loads_after_export": True, "reasons": [], "changes": [],
        "settings": {"enable_lora": True, "max_lora_rank": 8},
    }  # fmt: skip
    assert verdicts["sglang"]["verdict"] == "export"
    assert "lora_alpha / r = 2" in verdicts["sglang"]["reasons"][0]
    for verdict in plain["verdicts"]:
        assert all(text.endswith(".") for text in verdict["reasons"])
    nobody = dict.fromkeys(verdicts, "no")
    assert words(service, f"{url('dora')}/compatibility") == nobody
    assert words(service, f"{url('strange')}/compatibility") == nobody | {"vllm": "unchanged", "sglang": "unchanged"}


def test_without_a_version_it_is_the_latest(service: Service, shelf: Path) -> None:
    latest = service.http.get("/v1/adapters/x/two/compatibility").json()
    assert latest == service.http.get(f"{url('two', 2)}/compatibility").json()
    assert latest["ref"] == "x/two@2"
    problem(service.http.get("/v1/adapters/x/nothing/compatibility"), 404, "unknown-reference")
    assert service.http.get(url("two", 2)).json()["compatibility"] == {
        "llama.cpp": "export", "sglang": "unchanged", "tgi": "export", "vllm": "unchanged",
    }  # fmt: skip


def test_an_export_is_an_archive_that_is_the_same_every_time(service: Service, shelf: Path) -> None:
    answer = service.http.get(f"{url('plain')}/export", params={"format": "sglang"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert 'filename="x-plain-1-sglang.zip"' in answer.headers["content-disposition"]
    summary = json.loads(answer.headers["spolia-export"])
    assert summary["settings"]["max_lora_rank"] == summary["rank"] == 3
    assert summary["energy_lost"] == 0
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors", "spolia_export.json"]
        config = json.loads(archive.read("adapter_config.json"))
        tensors = load(archive.read("adapter_model.safetensors"))
        said = json.loads(archive.read("spolia_export.json"))
    assert (config["r"], config["lora_alpha"], config.get("use_rslora", False)) == (3, 3, False)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert len(tensors) == 8
    assert said["digest"] == service.http.get(url("plain")).json()["digest"]
    again = service.http.get(f"{url('plain')}/export", params={"format": "sglang"})
    assert again.content == answer.content
    same = {"if-none-match": answer.headers["etag"]}
    fresh = service.http.get(f"{url('plain')}/export", params={"format": "sglang"}, headers=same)
    assert (fresh.status_code, fresh.content) == (304, b"")
    part = service.http.get(f"{url('plain')}/export", params={"format": "sglang"}, headers={"range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, answer.content[:10])


def test_blocks_that_are_left_out_are_filled_for_tgi(service: Service, shelf: Path) -> None:
    answer = service.http.get(f"{url('plain')}/export", params={"format": "tgi"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        tensors = load(archive.read("adapter_model.safetensors"))
        config = json.loads(archive.read("adapter_config.json"))
    assert len(tensors) == 30 * 2 * 2
    assert config["target_modules"] == ["q_proj", "v_proj"]
    empty = [key for key, tensor in tensors.items() if not tensor.any()]
    assert len(empty) == 28 * 2 * 2


def test_a_gguf_file_for_llama_cpp(service: Service, shelf: Path, tmp_path: Path) -> None:
    answer = service.http.get(f"{url('plain')}/export", params={"format": "llama.cpp"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content.startswith(b"GGUF")
    (tmp_path / "adapter.gguf").write_bytes(answer.content)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert {tensor.name for tensor in reader.tensors} == {
        f"blk.{block}.attn_{which}.weight.lora_{side}" for block in (0, 1) for which in "qv" for side in "ab"
    }


def test_a_smaller_rank_says_what_it_costs(service: Service, shelf: Path) -> None:
    answer = service.http.get(f"{url('plain')}/export", params={"format": "vllm", "max_rank": 1})
    summary = json.loads(answer.headers["spolia-export"])
    assert summary["rank"] == 1
    assert 0 < summary["energy_lost"] < 1
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        said = json.loads(archive.read("spolia_export.json"))
    assert said["energy_lost"] == summary["energy_lost"]
    assert len(said["lost_by_module"]) == 4


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(service: Service, shelf: Path) -> None:
    refused = problem(service.http.get(f"{url('dora')}/export", params={"format": "vllm"}), 422, "not-exportable")
    assert "full rank" in refused["detail"]
    assert refused["target"] == "vLLM"
    assert len(refused["reasons"]) == 1
    refused = problem(service.http.get(f"{url('strange')}/export", params={"format": "tgi"}), 422, "not-exportable")
    assert "not known here" in refused["detail"]
    refused = problem(service.http.get(f"{url('plain')}/export", params={"format": "ollama"}), 422, "unknown-runtime")
    assert refused["known"] == ["llama.cpp", "sglang", "tgi", "vllm"]
    problem(service.http.get(f"{url('plain')}/export"), 422, "invalid-request")
    for bad in ("0", "many"):
        query = {"format": "vllm", "max_rank": bad}
        problem(service.http.get(f"{url('plain')}/export", params=query), 422, "invalid-request")
    problem(service.http.get(f"{url('plain', 9)}/export", params={"format": "vllm"}), 404, "unknown-reference")
    assert not list(service.house.settings.spool_dir.glob("export-*"))


def test_a_version_whose_files_are_damaged_is_shown_without_a_verdict(service: Service, tmp_path: Path) -> None:
    version = service.push("x/damaged", small_adapter(tmp_path / "damaged"))
    weights = next(file["sha256"] for file in version["files"] if file["name"] == "adapter_model.safetensors")
    path = service.house.shelves.blobs.path(weights)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    assert service.http.get(url("damaged")).json()["compatibility"] is None
    problem(service.http.get(f"{url('damaged')}/compatibility"), 422, "bad-file")
