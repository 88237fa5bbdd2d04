"""Families that are no low-rank sums are served exactly: alone, weighted, and in one batch with all others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor

from serving.adapter_set import AdapterSet, adapter_set
from serving.base_model import BaseModel
from serving.base_weights import with_loaded_base
from serving.engine import Engine, Generation, Sampling
from serving.errors import AdapterNotServable
from serving.lora_batch import LoraBatch
from serving.resident import ResidentAdapter, make_resident, served_size
from tests.serving.collecting import generate
from tests.serving.peft_families import FAMILIES, IN_FLOAT32, Made, make, merged

IDS = torch.tensor([[5, 17, 301, 8], [99, 1, 5, 4021], [7, 7, 23, 2000], [640, 11, 3, 12]])
MIXED = (
    "lora", "dora", "dora patterns", "ia3", "hira", "miss bat", "loha, large", "glora", "glora vector", "lora bias",
    "dora biases", "whole",
)  # fmt: skip
SETS = st.lists(st.tuples(st.sampled_from(MIXED), st.floats(-1.5, 1.5)), max_size=4).map(adapter_set)


@pytest.fixture(scope="module")
def made(biased_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    room = tmp_path_factory.mktemp("families")
    found = {}
    for seed, (name, config) in enumerate(FAMILIES.items()):
        dtype = torch.float32 if name in IN_FLOAT32 else torch.float64
        found[name] = make(biased_base, room / name.replace(" ", "-"), config, IDS, seed=seed, dtype=dtype)
    return found


@pytest.fixture(scope="module")
def residents(biased_base: BaseModel, made: dict[str, Made]) -> dict[str, ResidentAdapter]:
    return {name: make_resident(name, one.open(), biased_base) for name, one in made.items()}


def served(
    base: BaseModel, residents: dict[str, ResidentAdapter], sets: list[AdapterSet], *, many_tokens: bool = False
) -> Tensor:
    lora = LoraBatch(base.model)
    try:
        with torch.inference_mode():
            lora.apply(sets, residents, many_tokens=many_tokens)
            logits: Tensor = base.model(IDS).logits
            return logits
    finally:
        lora.remove()


@pytest.mark.parametrize("many_tokens", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_gives_the_logits_of_peft(
    biased_base: BaseModel,
    made: dict[str, Made],
    residents: dict[str, ResidentAdapter],
    family: str,
    many_tokens: bool,
) -> None:
    logits = served(biased_base, residents, [((family, 1.0),)] * len(IDS), many_tokens=many_tokens)
    tolerance = 1e-3 if family in IN_FLOAT32 else 1e-7
    assert torch.allclose(logits, made[family].logits, rtol=tolerance, atol=tolerance)
    with torch.inference_mode():
        assert not torch.allclose(logits, biased_base.model(IDS).logits, atol=0.1)


@given(sets=st.lists(SETS, min_size=4, max_size=4), many_tokens=st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_weighted_sets_of_families_in_one_batch_are_the_models_merged_by_sum(
    biased_base: BaseModel,
    made: dict[str, Made],
    residents: dict[str, ResidentAdapter],
    sets: list[AdapterSet],
    many_tokens: bool,
) -> None:
    logits = served(biased_base, residents, sets, many_tokens=many_tokens)
    for row, one in enumerate(sets):
        oracle = merged(biased_base, [(made[name], weight) for name, weight in one])
        with torch.inference_mode():
            expected = oracle(IDS[row][None]).logits[0]
        assert torch.allclose(logits[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["dora", "ia3", "lora bias"])
def test_layers_without_a_bias_are_served_as_well(tiny_base: BaseModel, tmp_path: Path, family: str) -> None:
    adapter = make(tiny_base, tmp_path, FAMILIES[family], IDS, merge=False)  # PEFT cannot merge lora_bias there
    resident = {family: make_resident(family, adapter.open(), tiny_base)}
    logits = served(tiny_base, resident, [((family, 1.0),)] * len(IDS))
    assert torch.allclose(logits, adapter.logits, rtol=1e-7, atol=1e-7)


def test_plain_ranks_have_no_forms_and_dense_updates_count_in_full(
    biased_base: BaseModel, made: dict[str, Made], residents: dict[str, ResidentAdapter]
) -> None:
    for name, resident in residents.items():
        adapter = with_loaded_base(made[name].open(), biased_base)
        beside = [form for one in resident.forms.values() for form in one.present]
        factors = [side for one in resident.modules.values() for side in (one.A, one.Bt)]
        held = sum(tensor.nbytes for tensor in (*beside, *factors))
        assert held <= served_size(adapter, biased_base.dtype, biased_base.device) == resident.size_bytes
        # All that may be spared are biases that an output's scaling turned out not to touch.
        assert resident.size_bytes - held <= 8 * sum(
            one.output.numel() for one in resident.forms.values() if one.output is not None
        )
    plain = {"lora", "kasa", "pissa", "olora", "adalora", "miss", "loha", "lokr", "vera"}
    assert {name for name, resident in residents.items() if not resident.forms} == plain
    assert {name for name, resident in residents.items() if not resident.modules} == {
        "miss bat", "hira", "ia3", "loha, full", "glora",
    }  # fmt: skip


def test_a_served_set_continues_as_the_merged_model_does(biased_base: BaseModel, made: dict[str, Made]) -> None:
    sets: list[tuple[tuple[str, float], ...]] = [
        (("dora", 0.8), ("lora", -0.5)), (("ia3", 1.0),), (("ia3", -0.5), ("glora", 0.7), ("whole", 0.4)), (),
        (("hira", 1.0), ("dora biases", 0.5)), (("dora", 1.0),), (("miss bat", 0.6), ("loha, full", 0.5)),
    ]  # fmt: skip
    prompts = [tuple(IDS[at % len(IDS)].tolist()[: 2 + at % 3]) for at in range(len(sets))]
    sampling = Sampling(max_tokens=12, temperature=0.0, logit_bias={2: -100.0})
    # Whoever opens adapters need not know their base model: the engine gives them its own.
    with Engine(
        biased_base, lambda name: made[name].open(), pool_bytes=1 << 28, max_rows=4, max_waiting=16, threads=1
    ) as engine:
        answers = generate(engine, [Generation(*asked, sampling) for asked in zip(prompts, sets, strict=True)])
    for prompt, one, answer in zip(prompts, sets, answers, strict=True):
        oracle: Any = merged(biased_base, [(made[name], weight) for name, weight in one])
        ids = torch.tensor([prompt])
        expected = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None,
            bad_words_ids=[[2]],
        )  # fmt: skip
        assert answer.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LoraConfig(r=2, target_modules=["embed_tokens"]), r"'model\.embed_tokens' is an embedding"),
        (
            LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]),
            r"layernorm\.weight' \(7 such tensors\)",
        ),
        (LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[4, 9]), r"rows of an embedding"),
    ],
)
def test_what_is_no_linear_layers_change_is_refused_by_name(
    biased_base: BaseModel, tmp_path: Path, config: Any, reason: str
) -> None:
    adapter = make(biased_base, tmp_path, config, IDS, merge=False).open()
    with pytest.raises(AdapterNotServable, match=reason):
        make_resident("0", adapter, biased_base)
