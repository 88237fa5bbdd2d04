"""A tiny random Llama with the real tokenizer, in float64, and small adapters for it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deltas.adapter import Adapter
from serving.base_model import BaseModel, ensure_base, load_base
from tests.factory import write_adapter

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_tiny_llama(folder: Path, tokenizer_from: Path, seed: int = 0, *, biases: bool = False) -> Path:
    """A transformers folder: 3 layers, hidden 40, 5 heads (1 of keys and values), 96 positions, no two sizes equal.

    `biases`: all linear layers but the last have one.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=5,
        num_key_value_heads=1, max_position_embeddings=96, tie_word_embeddings=True, eos_token_id=2,
        initializer_range=0.4, attention_bias=biases, mlp_bias=biases,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):  # which start as zeros
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_from / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    room = tmp_path_factory.mktemp("tiny")
    plain = write_tiny_llama(room / "plain", base_folder)
    return load_base(ensure_base(str(plain), [], room / "models"), dtype="float64")


@pytest.fixture(scope="session")
def biased_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    room = tmp_path_factory.mktemp("biased")
    plain = write_tiny_llama(room / "plain", base_folder, biases=True)
    return load_base(ensure_base(str(plain), [], room / "models"), dtype="float64")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapter]:
    """Opens adapters a0 to a5: ranks 1 to 6, each with targets and scales of its own."""
    room = tmp_path_factory.mktemp("adapters")
    for index in range(6):
        chosen = [name for at, name in enumerate(TARGETS) if (at + index) % 3]
        modules = {name: shape for name, shape in tiny_base.modules.items() if name.rsplit(".", 1)[-1] in chosen}
        options = {"rank": index + 1, "alpha": 3.0 + index, "use_rslora": index % 2 == 1, "seed": index}
        write_adapter(room / f"a{index}", modules, size=0.2, **options)  # type: ignore[arg-type]

    def load(digest: str) -> Adapter:
        return Adapter.open(room / digest / "adapter_config.json", room / digest / "adapter_model.safetensors")

    return load


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
