"""A packed row computes what each prompt alone computes."""

from random import Random

import pytest
import torch

from benchmarks.quality.lowrank import Slots
from benchmarks.quality.packing import ROW_TOKENS, Encoded, encode, hidden, pack, right, rows
from deltas.factors import Factors
from tests.benchmarks.tiny import prompt, tiny_model

RNG = Random(1)
MIXED = [prompt(stem, RNG, RNG.randrange(2)) for stem in (0, 1, 0, 2, 1, 1, 0)]


def alone(model: torch.nn.Module, one: Encoded) -> torch.Tensor:
    """The last hidden state of the prompt by itself."""
    ids = torch.tensor([one.stem + one.rest])
    state: torch.Tensor = model.model(input_ids=ids).last_hidden_state[0, -1]  # type: ignore[operator,union-attr]
    return state


@torch.inference_mode()
def test_each_prompt_of_a_row_has_the_hidden_state_that_it_has_alone() -> None:
    model = tiny_model()
    row = pack(MIXED)
    packed = hidden(model, row)[row.ends]
    for place, state in zip(row.order, packed, strict=True):
        torch.testing.assert_close(state, alone(model, MIXED[place]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_answers_come_back_in_the_order_of_the_prompts() -> None:
    model = tiny_model()
    expected = []
    for one in MIXED:
        logits = model.lm_head(alone(model, one))[list(one.labels)]
        expected.append(int(logits.argmax()) == one.answer)
    assert right(model, pack(MIXED)) == expected
    assert len(set(expected)) == 2


def test_rows_hold_every_prompt_once_in_order_and_stay_short() -> None:
    rng = Random(2)
    prompts = [prompt(0, rng, 0) for _ in range(200)]
    packed = rows(prompts)
    assert sum(len(row.order) for row in packed) == 200
    assert all(row.ids.shape[1] <= ROW_TOKENS for row in packed)
    joined = [token for row in packed for token in row.ids[0].tolist()[2:]]  # behind the stem
    assert joined == [token for one in prompts for token in one.rest]


@torch.inference_mode()
def test_an_update_beside_the_weights_is_that_update_in_the_weights() -> None:
    rng = torch.Generator().manual_seed(3)
    name = "model.layers.1.self_attn.v_proj"
    factors = Factors(torch.randn(2, 16, generator=rng), torch.randn(8, 2, generator=rng))
    folded, beside = tiny_model(), tiny_model()
    folded.get_submodule(name).weight += 0.5 * factors.B @ factors.A
    slots = Slots(beside)
    slots.use({name: factors}, 0.5)
    row = pack(MIXED)
    torch.testing.assert_close(hidden(beside, row), hidden(folded, row), rtol=1e-4, atol=1e-5)
    slots.use({})
    torch.testing.assert_close(hidden(beside, row), hidden(tiny_model(), row), rtol=0, atol=0)


def test_an_update_of_an_unknown_layer_is_refused() -> None:
    slots = Slots(tiny_model())
    with pytest.raises(KeyError, match="no linear layer elsewhere"):
        slots.use({"elsewhere": Factors(torch.ones(1, 16), torch.ones(8, 1))})


def letters(text: str) -> list[int]:
    """A tokenizer of letters; "é" is two tokens."""
    return [code for letter in text for code in letter.encode()]


def test_a_prompt_is_cut_behind_its_stem() -> None:
    one = encode(lambda text: letters(text.replace(" ", "")), "is", "is it?", ("a", "b"), "b")
    assert (bytes(one.stem), bytes(one.rest), one.answer) == (b"is", b"it?", 1)


@pytest.mark.parametrize("labels", [("a", "é"), ("a", "a")])
def test_labels_that_are_not_one_token_of_their_own_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="one token of its own"):
        encode(lambda text: letters(text.replace(" ", "")), "is", "is it?", labels, "a")


def test_a_stem_that_is_not_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="not the first ones"):
        encode(letters, "was", "is it?", ("a", "b"), "a")
