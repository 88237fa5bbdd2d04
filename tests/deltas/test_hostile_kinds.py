"""Files that claim to be of the less usual kinds, but are not: refused with a sentence, never a crash."""

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltas.adapter import Adapter
from deltas.base import FolderWeights
from deltas.errors import DeltaError
from tests.deltas.peft_model import tiny_llama
from tests.factory import write_adapter

MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.experts",
    "model.embed_tokens",
    "lm_head",
    "score",
    "",
)
ENDS = (
    "lora_A.weight", "lora_B.weight", "lora_A", "lora_B", "lora_E", "ranknum", "lora_diag", "lora_embedding_A",
    "lora_embedding_B", "lora_B.bias", "lora_magnitude_vector", "base_layer.lora_A.weight", "base_layer.lora_B.weight",
    "base_layer.weight", "base_layer.bias", "bias", "weight", "modules_to_save.default.weight",
    "original_module.weight", "token_adapter.trainable_tokens_delta", "token_adapter.base_layer.weight",
)  # fmt: skip
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 16, 40]), max_size=3).map(tuple)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 50) | st.text(max_size=4) | st.sampled_from(["lm_head", "experts.x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
FIELDS = (
    "target_parameters", "trainable_token_indices", "modules_to_save", "bias", "lora_bias", "kasa_config", "use_dora",
    "init_lora_weights", "ensure_weight_tying", "rank_pattern", "init_r", "target_modules",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FolderWeights:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return FolderWeights("tiny/base", folder)


@given(data=st.data())
def test_nothing_but_an_error_with_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, base: FolderWeights, data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.tuples(st.sampled_from(MODULES), st.sampled_from(ENDS)), min_size=1, max_size=6))
    tensors = {
        f"base_model.model.{module}.{end}": torch.ones(data.draw(SHAPES, label=end))
        for module, end in dict.fromkeys(keys)
    }
    config = {field: data.draw(ANYTHING, label=field) for field in data.draw(st.sets(st.sampled_from(FIELDS)))}
    config["peft_type"] = data.draw(st.sampled_from(["LORA", "ADALORA"]))
    folder = tmp_path_factory.mktemp("hostile")
    write_adapter(folder, {}, config={"target_modules": ["q_proj"], "init_r": 2, **config}, extra_tensors=tensors)
    with contextlib.suppress(DeltaError):  # anything else that is raised fails the test
        adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors").with_base(base)
        adapter.check_copies()
        for module in adapter.modules if not adapter.obstacles else ():
            adapter.reading(module)
        for name in adapter.extras if not adapter.obstacles else ():
            assert adapter.extra(name).is_floating_point()
