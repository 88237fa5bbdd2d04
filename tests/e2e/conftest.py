"""Real `spolia serve` processes on a base model so small that starting takes little more than the imports."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.e2e.process import ServerProcess


@pytest.fixture(scope="session")
def tiny_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a Llama with two layers, random weights and the real tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 16
    return folder


@pytest.fixture
def start(tiny_base: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server; all that were started end with the test."""
    started: list[ServerProcess] = []

    def begin(**options: object) -> ServerProcess:
        server = ServerProcess(tmp_path / "data", tiny_base, tmp_path / "log.txt", **options)  # type: ignore[arg-type]
        started.append(server)
        server.start()
        return server

    yield begin
    for server in started:
        server.stop()
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
