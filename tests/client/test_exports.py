"""Verdicts and exports through the client and the command line."""

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.client import Client, SpoliaError
from tests.client.conftest import SPOLIA, make_adapter


@pytest.fixture
def ref(spolia: Client, tmp_path: Path) -> str:
    return str(spolia.push(make_adapter(tmp_path / "in", seed=31, rank=3), "exports/a")["ref"])


def run(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SPOLIA, "--url", address, *words], capture_output=True, text=True, check=False)


def test_the_client_writes_what_a_server_loads(spolia: Client, ref: str, tmp_path: Path) -> None:
    assert {one["target"]: one["verdict"] for one in spolia.compatibility(ref)["verdicts"]}["vllm"] == "unchanged"
    made = spolia.export(ref, "tgi", tmp_path / "tgi")
    assert (made["target"], made["rank"], made["energy_lost"]) == ("tgi", 3, 0)
    assert sorted(path.name for path in (tmp_path / "tgi").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "spolia_export.json",
    ]  # fmt: skip
    assert len(load_file(tmp_path / "tgi" / "adapter_model.safetensors")) == 120
    spolia.export(ref, "llama.cpp", tmp_path / "gguf")
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == ["adapter.gguf"]
    cut = spolia.export(ref, "vllm", tmp_path / "cut", max_rank=1)
    assert cut["energy_lost"] > 0
    with pytest.raises(SpoliaError, match="ollama"):
        spolia.export(ref, "ollama", tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_the_shell_has_both_verbs(address: str, ref: str, tmp_path: Path) -> None:
    shown = run(address, "compatibility", ref)
    assert shown.returncode == 0, shown.stderr
    for word in ("llama.cpp", "sglang", "tgi", "vllm", "as it is", "max_lora_rank=8", "GGUF"):
        assert word in shown.stdout
    found = json.loads(run(address, "compatibility", ref, "--json").stdout)
    assert found["ref"] == ref
    made = run(address, "export", ref, "--for", "vllm", "-o", str(tmp_path / "out"), "--max-rank", "2")
    assert made.returncode == 0, made.stderr
    assert "adapter_config.json, adapter_model.safetensors" in made.stdout
    assert "of the energy" in made.stdout
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    refused = run(address, "export", ref, "--for", "ollama", "-o", str(tmp_path / "no"))
    assert refused.returncode == 1
    assert refused.stderr.startswith("spolia: ")
