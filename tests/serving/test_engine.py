"""The engine's promises: company changes nothing, requests come and go, failures stay with their request."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.engine import Engine, Event, Generation, Sampling, TokenEvent
from serving.errors import (
    AdapterLoadFailed,
    EmptyPrompt,
    EngineClosed,
    NonFiniteLogits,
    PromptTooLong,
    QueueFull,
    SetTooLarge,
    StepFailed,
    TokenOutOfRange,
)
from tests.serving.collecting import Collected, generate, submit

NO_END = {2: -100.0}
SETS = [(), (("a0", 1.0),), (("a1", -0.5), ("a2", 0.7)), (("a5", 0.3), ("a0", 0.2), ("a3", 1.0)), (("a0", 1.0),)]


def _sampling(tokens: int, **fields: object) -> Sampling:
    return replace(Sampling(max_tokens=tokens, temperature=0.0, logit_bias=NO_END), **fields)


class Loader:
    """Opens the tiny adapters; digests that start with "broken" raise, and opening can be held up."""

    def __init__(self, adapters: Callable[[str], Adapter]) -> None:
        self.adapters, self.gate = adapters, threading.Event()
        self.gate.set()

    def __call__(self, digest: str) -> Adapter:
        self.gate.wait(30)
        if digest.startswith("broken"):
            raise MemoryError("no room for this adapter")
        return self.adapters(digest)


@pytest.fixture
def loader(tiny_adapters: Callable[[str], Adapter]) -> Loader:
    return Loader(tiny_adapters)


@pytest.fixture
def engine(tiny_base: BaseModel, loader: Loader) -> Iterator[Engine]:
    with Engine(tiny_base, loader, pool_bytes=1 << 20, max_rows=4, max_waiting=64, threads=1) as running:
        yield running
        loader.gate.set()


def _mixed(count: int) -> list[Generation]:
    """Prompts of 1 to 30 tokens, answers of 1 to 20, five different sets, half of them sampled."""
    rng = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        length = int(torch.randint(1, 31, (), generator=rng))
        prompt = tuple(torch.randint(3, 40000, (length,), generator=rng).tolist())
        heat = {"temperature": 0.8, "top_p": 0.9, "seed": index} if index % 2 else {}
        made.append(Generation(prompt, SETS[index % len(SETS)], _sampling(1 + (index * 7) % 20, **heat)))
    return made


def test_every_request_gets_what_it_would_get_alone(engine: Engine) -> None:
    generations = _mixed(24)
    together = generate(engine, generations)
    for generation, one in zip(generations, together, strict=True):
        assert len(one.tokens) == generation.sampling.max_tokens
        assert one.finish.reason == "length"
        assert one.finish.usage.prompt_tokens == len(generation.prompt_ids)
        assert one.finish.usage.completion_tokens == len(one.tokens)
        assert generate(engine, [generation])[0].tokens == one.tokens
    assert (engine.state().waiting, engine.state().running) == (0, 0)
    assert set(engine.state().resident.values()) == {0}


def test_a_seeded_request_is_the_same_alone_and_among_others(engine: Engine) -> None:
    heat = {"temperature": 0.9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2, "logprobs": 2}
    asked = Generation((5, 6, 7, 8), SETS[2], _sampling(25, seed=1234, **heat))
    others = [Generation((9 + at, 5), SETS[at % 5], _sampling(8 + 2 * at, seed=at, **heat)) for at in range(7)]
    alone = generate(engine, [asked])[0]
    for place in (0, 7):
        answer = generate(engine, [*others[:place], asked, *others[place:]])[place]
        assert answer.tokens == alone.tokens
        assert answer.text == alone.text
    unlike = replace(asked, sampling=replace(asked.sampling, seed=1235))
    assert generate(engine, [unlike])[0].tokens != alone.tokens


def test_requests_join_and_leave_while_others_run(engine: Engine) -> None:
    first = submit(engine, Generation((5, 6, 7), SETS[1], _sampling(60)))
    assert first.started.wait(10)
    later = [submit(engine, Generation((9, 8), SETS[index], _sampling(5))) for index in range(5)]
    for one in later:
        one.wait()
    assert not first.over.is_set() or len(first.tokens) == 60
    alone = generate(engine, [Generation((5, 6, 7), SETS[1], _sampling(60))])[0]
    assert first.wait().tokens == alone.tokens


def test_one_token_answers_need_no_place_in_the_batch(engine: Engine, tiny_base: BaseModel) -> None:
    allowed = [11, 222, 3333]
    sampling = _sampling(1, logit_bias=dict.fromkeys(allowed, 100.0), logprobs=3)
    prompts = [tuple(range(3, 5 + index % 9)) for index in range(60)]
    answers = generate(engine, [Generation(prompt, SETS[2], sampling) for prompt in prompts])
    assert all(one.tokens[0] in allowed and one.finish.reason == "length" for one in answers)
    assert engine._batch._cache.capacity == (0, 0)
    bare = generate(engine, [Generation(prompts[0], (), sampling)])[0].events[0]
    with torch.inference_mode():
        logprobs = tiny_base.model(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)
    assert isinstance(bare, TokenEvent)
    assert bare.logprob == pytest.approx(float(logprobs[bare.token_id]), abs=1e-5)
    assert [token for token, _ in bare.top] == logprobs.topk(3).indices.tolist()


def test_the_end_token_ends_a_text_and_is_not_shown(engine: Engine) -> None:
    answer = generate(engine, [Generation((5, 6), (), _sampling(9, logit_bias={2: 100.0}))])[0]
    assert (answer.tokens, answer.finish.reason, answer.finish.usage.completion_tokens) == ([], "stop", 1)


def test_end_tokens_of_ones_own_and_none_at_all(engine: Engine) -> None:
    whole = generate(engine, [Generation((5, 6), (), _sampling(9))])[0]
    at = next(i for i in range(1, 9) if whole.tokens[i] not in whole.tokens[:i])
    sampling = _sampling(9, stop_token_ids=(whole.tokens[at],))
    ended = generate(engine, [Generation((5, 6), (), sampling)])[0]
    assert (ended.tokens, ended.finish.reason) == (whole.tokens[:at], "stop")
    assert ended.finish.usage.completion_tokens == at + 1
    later = generate(engine, [Generation((5, 6), (), replace(sampling, min_tokens=9))])[0]
    assert (len(later.tokens), later.finish.reason) == (9, "length")
    endless = generate(engine, [Generation((5, 6), (), _sampling(4, logit_bias={2: 100.0}, ignore_eos=True))])[0]
    assert (endless.tokens, endless.text, endless.finish.reason) == ([2] * 4, "", "length")


def test_min_tokens_keeps_stop_strings_away(engine: Engine) -> None:
    whole = generate(engine, [Generation((5, 6), (), _sampling(12))])[0].text
    stop = whole[len(whole) // 3 :][:3]
    kept = generate(engine, [Generation((5, 6), (), _sampling(12, stop=(stop,), min_tokens=12))])[0]
    assert (kept.text, kept.finish.reason) == (whole, "length")


def test_a_stop_string_ends_a_text_before_it(engine: Engine) -> None:
    whole = generate(engine, [Generation((5, 6), (), _sampling(12))])[0].text
    stop = whole[len(whole) // 2 :][:3]
    answer = generate(engine, [Generation((5, 6), (), _sampling(12, stop=(stop, "never said")))])[0]
    assert answer.text == whole[: whole.find(stop)]
    assert answer.finish.reason == "stop"


def test_max_tokens_is_clipped_to_the_context(engine: Engine, tiny_base: BaseModel) -> None:
    prompt = tuple(range(10, 10 + tiny_base.context_length - 4))
    assert len(generate(engine, [Generation(prompt, (), _sampling(50))])[0].tokens) == 4
    unbounded = Sampling(temperature=0.0, logit_bias=NO_END)
    assert len(generate(engine, [Generation(prompt, (), unbounded)])[0].tokens) == 4


def test_impossible_requests_are_refused_at_once(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="96 tokens; with a context of 96 at most 95"):
        submit(engine, Generation(tuple(range(96))))
    with pytest.raises(EmptyPrompt):
        submit(engine, Generation(()))
    with pytest.raises(TokenOutOfRange, match="49152"):
        submit(engine, Generation((1, 49152)))


def test_cancel_frees_rows_and_leases(engine: Engine, loader: Loader) -> None:
    running = submit(engine, Generation((5, 6, 7), SETS[1], _sampling(90)))
    assert running.started.wait(10)
    loader.gate.clear()
    waiting = submit(engine, Generation((5, 6, 7), (("a4", 1.0),), _sampling(90)))
    for one in (running, waiting):
        assert one.ticket is not None
        one.ticket.cancel()
        assert one.wait().finish.reason == "cancelled"
    assert len(running.tokens) < 90
    assert waiting.tokens == []
    assert engine.state().running == engine.state().waiting == 0
    assert set(engine.state().resident.values()) == {0}


def test_loading_an_adapter_holds_up_nobody_else(engine: Engine, loader: Loader) -> None:
    loader.gate.clear()
    slow = submit(engine, Generation((5, 6), (("a3", 1.0),), _sampling(3)))
    assert len(generate(engine, [Generation((5, 6), (), _sampling(3))])[0].tokens) == 3
    assert not slow.over.is_set()
    loader.gate.set()
    assert len(slow.wait().tokens) == 3


def test_adapters_that_cannot_be_had_fail_their_own_request(engine: Engine) -> None:
    answers = generate(
        engine,
        [
            Generation((5, 6), (("broken", 1.0),), _sampling(3)),
            Generation((5, 6), (("a1", 1.0),), _sampling(3)),
            Generation((5, 6), (("a1", 1e300), ("a2", -1e300)), _sampling(3)),
        ],
    )
    assert isinstance(answers[0].error, AdapterLoadFailed)
    assert "no room for this adapter" in str(answers[0].error)
    assert len(answers[1].tokens) == 3
    assert isinstance(answers[2].error, NonFiniteLogits)


def test_a_set_larger_than_the_pool_fails_alone(tiny_base: BaseModel, loader: Loader) -> None:
    with Engine(tiny_base, loader, pool_bytes=40_000, max_rows=4, max_waiting=9, threads=1) as engine:
        large, fine = generate(
            engine, [Generation((5,), SETS[3], _sampling(2)), Generation((5,), SETS[1], _sampling(2))]
        )
    assert isinstance(large.error, SetTooLarge)
    assert len(fine.tokens) == 2


def test_the_queue_is_bounded(tiny_base: BaseModel, loader: Loader) -> None:
    engine = Engine(tiny_base, loader, pool_bytes=1 << 20, max_rows=1, max_waiting=2, threads=1)
    waiting = [submit(engine, Generation((5,), (), _sampling(2))) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting already, the limit is 2"):
        submit(engine, Generation((5,), (), _sampling(2)))
    engine.start()
    assert all(len(one.wait().tokens) == 2 for one in waiting)
    engine.close()
    with pytest.raises(EngineClosed):
        submit(engine, Generation((5,), (), _sampling(2)))


def test_closing_ends_everything_with_an_error(tiny_base: BaseModel, loader: Loader) -> None:
    engine = Engine(tiny_base, loader, pool_bytes=1 << 20, max_rows=1, max_waiting=9, threads=1).start()
    requests = [submit(engine, Generation((5,), SETS[1], _sampling(90))) for _ in range(3)]
    engine.close()
    assert all(one.over.is_set() for one in requests)
    assert isinstance(requests[-1].error, EngineClosed)


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_failing_step_ends_its_rows_and_the_engine_goes_on(engine: Engine, tiny_base: BaseModel, when: str) -> None:
    norm = tiny_base.model.model.norm
    running = submit(engine, Generation((5, 6, 7), (), _sampling(90)))
    assert running.started.wait(10)

    def explode(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if (output.shape[1] > 1) == (when == "prefill"):
            raise MemoryError("out of memory in the middle of a step")

    handle = norm.register_forward_hook(explode)
    try:
        hit = submit(engine, Generation((5, 6, 7), (), _sampling(3))) if when == "prefill" else running
        assert isinstance(hit.wait().error, StepFailed)
        assert "out of memory" in str(hit.error)
    finally:
        handle.remove()
    assert len(generate(engine, [Generation((5, 6, 7), SETS[1], _sampling(3))])[0].tokens) == 3
    if when == "prefill":
        assert len(running.wait().tokens) == 90


def test_a_listener_that_raises_ends_its_own_request(engine: Engine) -> None:
    def listener(event: Event) -> None:
        raise RuntimeError("the client has gone")

    engine.submit(Generation((5, 6), (), _sampling(80)), listener)
    assert len(generate(engine, [Generation((5, 6), (), _sampling(5))])[0].tokens) == 5
    deadline = time.monotonic() + 10
    while engine.state().running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.state().running == 0


def test_little_cache_means_fewer_rows_at_once_and_the_same_answers(tiny_base: BaseModel, loader: Loader) -> None:
    generations = _mixed(12)
    common = {"pool_bytes": 1 << 20, "max_waiting": 64, "threads": 1}
    with Engine(tiny_base, loader, max_rows=4, max_cache_tokens=60, prefill_tokens=16, **common) as engine:
        small = [one.tokens for one in generate(engine, generations)]
    with Engine(tiny_base, loader, max_rows=8, **common) as engine:
        assert [one.tokens for one in generate(engine, generations)] == small


def test_requests_from_many_threads_with_adapters_coming_and_going(tiny_base: BaseModel, loader: Loader) -> None:
    generations = _mixed(10)
    with Engine(tiny_base, loader, pool_bytes=60_000, max_rows=4, max_waiting=64, threads=1) as engine:
        alone = [generate(engine, [generation])[0] for generation in generations]
        answers: list[tuple[int, Collected]] = []

        def client(start: int) -> None:
            for at in range(start, start + 10):
                answers.append((at % 10, generate(engine, [generations[at % 10]])[0]))

        threads = [threading.Thread(target=client, args=(start,)) for start in range(0, 10, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert engine.state().resident_bytes <= 60_000
    assert len(answers) == 50
    assert all(answer.tokens == alone[at].tokens for at, answer in answers)
