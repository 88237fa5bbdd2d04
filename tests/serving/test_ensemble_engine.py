"""Ensembles in the engine: what plain transformers compute member by member, whatever else runs in the batch."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from deltas.adapter import Adapter
from serving.base_model import BaseModel, load_base
from serving.constrain import Constraint
from serving.engine import Engine, Generation, Sampling, TokenEvent
from serving.ensemble import Uncertainty, averaged
from serving.ensemble_row import row_for
from serving.errors import (
    AdapterLoadFailed,
    EnsembleEmpty,
    EnsembleTooLarge,
    EnsembleWeights,
    InvalidSampling,
    NonFiniteLogits,
    StepFailed,
)
from serving.generation import BARE_BASE, Event
from serving.pool import Lease, LeaseState
from serving.row import Row
from serving.waiting import Limits, next_group
from tests.serving.collecting import Collected, generate, submit

PROMPT = (5, 17, 301, 8)
TRIO = (("a0", 2.0), ("a3", 1.0), ("a5", 1.0))
SAMPLING = Sampling(max_tokens=12, temperature=0.0, logit_bias={2: -100.0}, logprobs=5)
SAMPLED = replace(SAMPLING, temperature=0.9, top_p=0.95, seed=7)


def _ensemble(
    *members: tuple[str, float], prompt: tuple[int, ...] = PROMPT, sampling: Sampling = SAMPLING
) -> Generation:
    return Generation(prompt, members, sampling, "ensemble")


@pytest.fixture
def engine(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> Iterator[Engine]:
    def load(digest: str) -> Adapter:
        if digest == "broken":
            raise OSError("the file is gone")
        return tiny_adapters(digest.rstrip("'"))

    with Engine(tiny_base, load, pool_bytes=1 << 20, max_rows=4, max_waiting=64, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def member_logits(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> Callable[[str, list[int]], Tensor]:
    """(digest, tokens) -> logits [vocabulary] of the next token, by a transformers model of changed weights."""
    models: dict[str, Any] = {}

    def run(digest: str, tokens: list[int]) -> Tensor:
        if digest not in models:
            models[digest] = load_base(tiny_base.folder, dtype="float64").model
            adapter = None if digest == BARE_BASE else tiny_adapters(digest)
            for name in adapter.modules if adapter else ():
                factors = adapter.factors(name).to(torch.float64)  # type: ignore[union-attr]
                models[digest].get_submodule(name).weight.data.add_(factors.B @ factors.A)
        with torch.no_grad():
            logits: Tensor = models[digest](torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return logits

    return run


def _tokens(answer: Collected) -> list[TokenEvent]:
    return [event for event in answer.events if isinstance(event, TokenEvent)]


def _uncertainties(answer: Collected) -> list[Uncertainty]:
    return [event.uncertainty for event in _tokens(answer) if event.uncertainty is not None]


@pytest.mark.parametrize("members", [TRIO, (("a1", 1.0), (BARE_BASE, 0.5)), (("a2", 3.0),)])
def test_an_ensemble_is_what_its_members_say_one_by_one(
    engine: Engine, member_logits: Callable[[str, list[int]], Tensor], members: tuple[tuple[str, float], ...]
) -> None:
    answer = generate(engine, [_ensemble(*members)])[0]
    total, tokens = sum(weight for _, weight in members), list(PROMPT)
    seen = _tokens(answer)
    assert len(seen) == SAMPLING.max_tokens
    for event in seen:
        each = torch.stack([member_logits(digest, tokens).softmax(-1) for digest, _ in members])
        weights = torch.tensor([weight / total for _, weight in members], dtype=torch.float64)
        mean = weights @ each
        own_entropies = torch.distributions.Categorical(each).entropy()
        entropy = float(torch.distributions.Categorical(mean).entropy())
        allowed = mean.clone()
        allowed[2] = 0
        assert event.token_id == int(allowed.argmax())
        assert event.logprob == pytest.approx(float(mean.log()[event.token_id]), abs=1e-8)
        assert [token for token, _ in event.top] == mean.topk(5).indices.tolist()
        assert event.uncertainty is not None
        assert event.uncertainty.entropy == pytest.approx(entropy, abs=1e-8)
        assert event.uncertainty.expected_entropy == pytest.approx(float(weights @ own_entropies), abs=1e-8)
        assert event.uncertainty.mutual_information == pytest.approx(entropy - float(weights @ own_entropies), abs=1e-8)
        strays = [float(share) for share, own in zip(weights, each, strict=True) if own.argmax() != mean.argmax()]
        assert event.uncertainty.disagreement == pytest.approx(sum(strays))
        assert event.uncertainty.max_disagreement == pytest.approx(
            max(float((own - mean).abs().sum()) / 2 for own in each), abs=1e-8
        )
        tokens.append(event.token_id)
    assert answer.finish.uncertainty == averaged(_uncertainties(answer))
    if len(members) > 1:
        assert answer.finish.uncertainty is not None
        assert answer.finish.uncertainty.mutual_information > 0.01, "members must differ for this to be a test"


@pytest.mark.parametrize("sampling", [SAMPLING, SAMPLED])
def test_identical_members_say_what_one_says_alone(engine: Engine, sampling: Sampling) -> None:
    twins = _ensemble(("a4", 1.0), ("a4'", 1.0), ("a4''", 2.0), sampling=sampling)
    one, ours = generate(engine, [Generation(PROMPT, (("a4", 1.0),), sampling), twins])
    assert (ours.tokens, ours.text) == (one.tokens, one.text)
    for event, alone in zip(_tokens(ours), _tokens(one), strict=True):
        assert event.logprob == pytest.approx(alone.logprob, abs=1e-6)
        assert alone.uncertainty is None
    for uncertainty in _uncertainties(ours):
        assert uncertainty.mutual_information == pytest.approx(0, abs=1e-10)
        assert uncertainty.max_disagreement == pytest.approx(0, abs=1e-10)
        assert uncertainty.disagreement == 0
    assert one.finish.uncertainty is None


def test_in_company_everybody_gets_what_they_would_get_alone(engine: Engine) -> None:
    asked = [
        Generation((9, 8, 7), (("a0", 0.5), ("a1", -0.5)), SAMPLED),
        _ensemble(*TRIO, sampling=SAMPLED),
        Generation((640, 11), (), replace(SAMPLING, max_tokens=20)),
        _ensemble(("a1", 1.0), ("a2", 1.0), prompt=(99, 1, 5, 4021, 7, 7, 23)),
        _ensemble(("a0", 1.0), ("a5", 1.0), sampling=replace(SAMPLED, max_tokens=3)),
        _ensemble(*TRIO, sampling=replace(SAMPLED, max_tokens=1)),
        Generation(PROMPT, (("a3", 1.0),), SAMPLING),
    ]
    together = generate(engine, asked)
    for generation, answer in zip(asked, together, strict=True):
        alone = generate(engine, [generation])[0]
        assert answer.tokens == alone.tokens
        assert len(answer.tokens) == generation.sampling.max_tokens
        assert _values(answer) == pytest.approx(_values(alone), abs=1e-8)
    assert engine.state().running == engine.state().waiting == 0
    assert set(engine.state().resident.values()) == {0}


def test_long_prompts_in_passes_on_known_beginnings(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]
) -> None:
    """Members whose beginnings are known to different lengths still step together."""
    prompt = tuple(range(100, 170))
    asked = _ensemble(*TRIO, prompt=prompt, sampling=SAMPLED)
    before = [Generation(prompt[:40], (("a0", 1.0),), SAMPLING), Generation(prompt, (("a3", 1.0),), SAMPLING)]

    def answers(*, prefill_tokens: int, prefix_bytes: int) -> list[Collected]:
        limits = {"prefill_tokens": prefill_tokens, "prefix_bytes": prefix_bytes}
        with Engine(
            tiny_base, tiny_adapters, pool_bytes=1 << 20, max_rows=4, max_waiting=9, threads=1, **limits
        ) as engine:
            generate(engine, before)
            again = [asked, Generation(PROMPT, (), SAMPLING)]
            return [*generate(engine, [asked]), *generate(engine, again)]

    plain, reused = answers(prefill_tokens=1024, prefix_bytes=0), answers(prefill_tokens=32, prefix_bytes=1 << 22)
    for one, other in zip(plain, reused, strict=True):
        assert other.tokens == one.tokens
        assert _values(other) == pytest.approx(_values(one), abs=1e-8)


def _values(answer: Collected) -> list[float]:
    return [getattr(one, name) for one in _uncertainties(answer) for name in Uncertainty.__dataclass_fields__]


def test_weights_are_shares_in_any_order(engine: Engine) -> None:
    plain = generate(engine, [_ensemble(*TRIO, sampling=SAMPLED)])[0]
    same = [_ensemble(*order, sampling=SAMPLED) for order in permutations(TRIO)]
    same.append(_ensemble(*((digest, 10 * weight) for digest, weight in TRIO), sampling=SAMPLED))
    same.append(_ensemble(("a0", 0.5), *TRIO[1:], ("a0", 1.5), ("a1", 0.0), sampling=SAMPLED))
    for answer in generate(engine, same):
        assert answer.tokens == plain.tokens
        assert _values(answer) == pytest.approx(_values(plain), abs=1e-12)
    other = generate(engine, [_ensemble(("a0", 0.01), *TRIO[1:], sampling=SAMPLED)])[0]
    assert _values(other) != pytest.approx(_values(plain), abs=1e-3)


def test_the_end_token_counts_though_it_is_not_shown(engine: Engine) -> None:
    answer = generate(engine, [_ensemble(*TRIO, sampling=replace(SAMPLING, logit_bias={2: 100.0}))])[0]
    assert (answer.tokens, answer.finish.reason, answer.finish.usage.completion_tokens) == ([], "stop", 1)
    assert answer.finish.uncertainty is not None


def test_a_stop_string_ends_all_members(engine: Engine) -> None:
    whole = generate(engine, [_ensemble(*TRIO)])[0].text
    stop = whole[len(whole) // 2 :][:3]
    answer = generate(engine, [_ensemble(*TRIO, sampling=replace(SAMPLING, stop=(stop,)))])[0]
    assert (answer.text, answer.finish.reason) == (whole[: whole.find(stop)], "stop")
    assert engine.state().running == 0


def test_an_answer_of_a_given_form_is_given_by_all(engine: Engine) -> None:
    form = replace(SAMPLED, logit_bias={}, constraint=Constraint("regex", "(never|always) [0-9]{3}"))
    answer = generate(engine, [_ensemble(*TRIO, sampling=form)])[0]
    assert re.fullmatch("(never|always) [0-9]{3}", answer.text)
    assert answer.finish.uncertainty is not None


def test_requests_that_are_no_ensemble(engine: Engine) -> None:
    with pytest.raises(EnsembleTooLarge, match=r"5 members, .* at most 4 rows"):
        submit(engine, _ensemble(*((f"a{index}", 1.0) for index in range(5))))
    with pytest.raises(EnsembleWeights, match=r"found 1, -0\.5"):
        submit(engine, _ensemble(("a0", 1.0), ("a1", -0.5)))
    with pytest.raises(EnsembleWeights):
        submit(engine, _ensemble(("a0", 0.0)))
    with pytest.raises(EnsembleEmpty):
        submit(engine, _ensemble())
    with pytest.raises(InvalidSampling, match="does not score prompts"):
        submit(engine, _ensemble(*TRIO, sampling=replace(SAMPLING, prompt_logprobs=0)))
    assert engine.state().resident == {}


def test_cancel_frees_every_members_row(engine: Engine) -> None:
    endless = replace(SAMPLING, max_tokens=90)
    running = submit(engine, _ensemble(*TRIO, sampling=endless))
    assert running.started.wait(10)
    deadline = time.monotonic() + 10
    while engine.state().running < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine.state().running == 3
    waiting = submit(engine, _ensemble(*TRIO, sampling=endless))
    for one in (waiting, running):
        assert one.ticket is not None
        one.ticket.cancel()
        assert one.wait().finish.reason == "cancelled"
    assert engine.state().running == engine.state().waiting == 0
    assert set(engine.state().resident.values()) == {0}
    assert waiting.tokens == []
    assert waiting.finish.uncertainty is None
    assert running.finish.uncertainty is not None
    assert len(running.tokens) < 90


def test_a_listener_that_raises_ends_all_members(engine: Engine) -> None:
    def listener(event: Event) -> None:
        raise RuntimeError("the client has gone")

    engine.submit(_ensemble(*TRIO, sampling=replace(SAMPLING, max_tokens=80)), listener)
    assert len(generate(engine, [_ensemble(*TRIO)])[0].tokens) == SAMPLING.max_tokens
    assert engine.state().running == 0


def test_a_member_that_cannot_be_loaded_fails_the_whole(engine: Engine) -> None:
    failed, fine = generate(engine, [_ensemble(("a0", 1.0), ("broken", 1.0)), _ensemble(*TRIO)])
    assert isinstance(failed.error, AdapterLoadFailed)
    assert len(failed.events) == 1
    assert len(fine.tokens) == SAMPLING.max_tokens


@pytest.mark.parametrize("found", [float("nan"), None])
def test_a_member_that_breaks_fails_the_whole_and_nobody_else(
    engine: Engine, tiny_base: BaseModel, found: float | None
) -> None:
    """Its logits are no numbers, or the step raises."""

    def spoil(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[0] == 4 and found is None:
            raise ValueError("something broke in a step")
        if output.shape[0] == 4:
            output[2] = found

    handle = tiny_base.model.model.norm.register_forward_hook(spoil)
    try:
        alone = submit(engine, Generation((9, 8), (), replace(SAMPLING, max_tokens=80)))
        broken = submit(engine, _ensemble(*TRIO, sampling=replace(SAMPLING, max_tokens=80)))
        error = broken.wait().error
    finally:
        handle.remove()
    assert isinstance(error, NonFiniteLogits if found is not None else StepFailed)
    assert engine.state().running <= 1
    if found is not None:
        assert len(alone.wait().tokens) == 80
    assert sum(not isinstance(event, TokenEvent) for event in broken.events) == 1
    assert len(generate(engine, [_ensemble(*TRIO)])[0].tokens) == SAMPLING.max_tokens


def test_members_join_all_at_once_or_wait_and_are_not_overtaken(tiny_base: BaseModel) -> None:
    def row(generation: Generation) -> Row:
        made = row_for(generation, tiny_base, lambda event: None, 4)
        for member in made.members:
            member.lease = Lease((), LeaseState.GRANTED)
        return made

    single, trio = row(Generation(PROMPT, (), SAMPLING)), row(_ensemble(*TRIO))
    late = row(Generation(PROMPT, (), SAMPLING))
    limits = Limits(max_rows=4, prefill_tokens=1024, chunk_tokens=256, max_cache_tokens=1 << 17)

    def join(waiting: list[Row], running: list[Row], **change: int) -> list[Row]:
        return next_group(waiting, running, replace(limits, **change), known=lambda row: 0)

    assert join([single, trio, late], []) == [single, trio]
    assert join([trio, late], [single, single]) == []
    assert join([trio, late], [single]) == [trio]
    assert join([single, trio], [], prefill_tokens=15) == [single]
    assert join([trio, late], [], prefill_tokens=1, max_cache_tokens=1) == [trio]
    assert join([single, trio], [], max_cache_tokens=3 * 16) == [single]
