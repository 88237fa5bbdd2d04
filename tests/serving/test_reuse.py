"""Reuse of prefixes changes what is computed, never what is answered, and never crosses from one set to another."""

import copy
import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.engine import Engine, Generation, Sampling
from tests.factory import write_adapter
from tests.serving.collecting import Collected, generate, submit

Load = Callable[[str], Adapter]
Set = tuple[tuple[str, float], ...]
GREEDY = Sampling(max_tokens=6, temperature=0.0, logit_bias={2: -100.0}, logprobs=2)


@pytest.fixture(scope="module")
def loud_adapters(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Opens loud0 to loud3, each of which takes the tiny model to another place altogether."""
    room = tmp_path_factory.mktemp("loud")
    modules = _layers(tiny_base)
    for index in range(4):
        write_adapter(room / f"loud{index}", modules, rank=3, size=1.5, seed=100 + index)

    def load(digest: str) -> Adapter:
        return Adapter.open(room / digest / "adapter_config.json", room / digest / "adapter_model.safetensors")

    return load


def _layers(base: BaseModel) -> dict[str, tuple[int, int]]:
    """All linear layers but the output's, which is large."""
    return {name: shape for name, shape in base.modules.items() if name != "lm_head"}


@contextmanager
def _engine(base: BaseModel, load: Load, prefix_bytes: int, **more: int) -> Iterator[Engine]:
    options = {"pool_bytes": 1 << 20, "max_rows": 4, "max_waiting": 64, "threads": 1, **more}
    with Engine(base, load, prefix_bytes=prefix_bytes, **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(tiny_base: BaseModel, loud_adapters: Load) -> Iterator[Engine]:
    """Keeps nothing and runs one request at a time, on a model of its own: engines do not share theirs."""
    with _engine(replace(tiny_base, model=copy.deepcopy(tiny_base.model)), loud_adapters, 0, max_rows=1) as engine:
        yield engine


@contextmanager
def _computed(base: BaseModel) -> Iterator[list[int]]:
    """Collects the prompt tokens, padding included, that go through the model in passes of more than one token."""
    seen: list[int] = []

    def see(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.shape[1] > 1:
            seen.append(output.shape[0] * output.shape[1])

    handle = base.model.model.norm.register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


def _facts(answer: Collected) -> list[tuple[int, float]]:
    return [(event.token_id, event.logprob) for event in answer.events[:-1]]  # type: ignore[union-attr]


def _close(one: Collected, other: Collected) -> None:
    assert one.tokens == other.tokens
    for (_, mine), (_, theirs) in zip(_facts(one), _facts(other), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)  # log-probabilities are told in float32


def _oracle(base: BaseModel, prompt: tuple[int, ...], tokens: int) -> tuple[list[int], list[float]]:
    """Transformers' own full pass for every token, on the bare base."""
    text, logprobs = list(prompt), []
    with torch.inference_mode():
        for _ in range(tokens):
            logits = base.model(torch.tensor([text]), use_cache=False).logits[0, -1]
            biased = logits.clone()
            biased[2] -= 100
            text.append(int(biased.argmax()))
            logprobs.append(float(logits.log_softmax(-1)[text[-1]]))
    return text[len(prompt) :], logprobs


def test_a_second_turn_computes_only_what_is_new(tiny_base: BaseModel, loud_adapters: Load) -> None:
    prompt = tuple(range(100, 140))
    with _engine(tiny_base, loud_adapters, 1 << 20) as engine:
        first = generate(engine, [Generation(prompt, (), GREEDY)])[0]
        longer = (*prompt, *first.tokens, 7, 8, 9)
        with _computed(tiny_base) as seen:
            second = generate(engine, [Generation(longer, (), GREEDY)])[0]
        assert first.finish.usage.cached_tokens == 0
        assert second.finish.usage.cached_tokens == 45  # the last token that was chosen was never fed
        assert seen == [4]
        assert engine.state().prefix_bytes > 0
    for text, answer in ((prompt, first), (longer, second)):
        tokens, logprobs = _oracle(tiny_base, text, 6)
        assert answer.tokens == tokens
        assert [logprob for _, logprob in _facts(answer)] == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20])
def test_many_choices_of_one_prompt_cost_one_prefill(
    tiny_base: BaseModel, loud_adapters: Load, prefix_bytes: int
) -> None:
    prompt = tuple(range(100, 140))
    choices = [
        Generation(prompt, (("loud0", 1.0),), replace(GREEDY, max_tokens=3 + seed, temperature=1.5, seed=seed))
        for seed in range(6)
    ]
    engine = Engine(
        tiny_base, loud_adapters, pool_bytes=1 << 20, prefix_bytes=prefix_bytes, max_rows=4, max_waiting=9, threads=1
    )
    answers = [submit(engine, one) for one in choices]
    with _computed(tiny_base) as seen, engine:
        for answer in answers:
            answer.wait()
        assert seen == [40]  # four share the pass; the last two find the beginning in a row that runs
        assert [answer.finish.usage.cached_tokens for answer in answers] == [0, 40, 40, 40, 39, 39]
        for one, answer in zip(choices, answers, strict=True):
            _close(generate(engine, [one])[0], answer)
    assert len({tuple(answer.tokens) for answer in answers}) > 3


def test_one_token_answers_share_their_beginning_too(tiny_base: BaseModel, loud_adapters: Load) -> None:
    common = tuple(range(200, 240))
    asked = [Generation((*common, 5 + index, 9), (), replace(GREEDY, max_tokens=1)) for index in range(8)]
    with _engine(tiny_base, loud_adapters, 0) as plain, _engine(tiny_base, loud_adapters, 1 << 20) as engine:
        expected = generate(plain, asked)
        with _computed(tiny_base) as seen:
            for one, other in zip(generate(engine, asked), expected, strict=True):
                _close(one, other)
    assert sum(seen) == 42 + 7 * 2


def test_a_budget_of_nothing_keeps_nothing(tiny_base: BaseModel, loud_adapters: Load) -> None:
    with _engine(tiny_base, loud_adapters, 0) as engine:
        for _ in range(2):
            answer = generate(engine, [Generation(tuple(range(50)), (), GREEDY)])[0]
            assert answer.finish.usage.cached_tokens == 0
        assert engine.state().prefix_bytes == 0


sets = st.lists(
    st.tuples(st.sampled_from(["loud0", "loud1", "loud2", "loud3"]), st.sampled_from([1.0, 0.5, -1.0])), max_size=2
).map(lambda pairs: tuple(dict(pairs).items()))
beginnings = st.sampled_from([tuple(range(300, 330)), tuple(range(300, 320)), tuple(range(400, 425))])


@settings(max_examples=8, deadline=None)
@given(
    waves=st.lists(
        st.lists(
            st.tuples(sets, beginnings, st.lists(st.integers(3, 40000), min_size=1, max_size=20), st.integers(1, 3)),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
    prefix_tokens=st.sampled_from([0, 60, 4000]),
    pass_tokens=st.sampled_from([8, 40, 1024]),
)
def test_sets_never_share_whatever_comes_and_goes(
    tiny_base: BaseModel,
    loud_adapters: Load,
    alone: Engine,
    waves: list[list[tuple[Set, tuple[int, ...], list[int], int]]],
    prefix_tokens: int,
    pass_tokens: int,
) -> None:
    """Against an engine that keeps nothing and runs one request at a time. The pool holds two adapters, so that most
    are evicted in between, and their prefixes stay."""
    size = 3 * sum(sum(shape) for shape in _layers(tiny_base).values()) * 8
    generations = [
        [
            Generation((*start, *tail), chosen, replace(GREEDY, max_tokens=tokens))
            for chosen, start, tail, tokens in wave
        ]
        for wave in waves
    ]
    expected = [[generate(alone, [one])[0] for one in wave] for wave in generations]
    with _engine(
        tiny_base, loud_adapters, prefix_tokens * 384, prefill_tokens=pass_tokens, pool_bytes=2 * size
    ) as engine:
        for wave, answers in zip(generations, expected, strict=True):
            for one, other in zip(generate(engine, wave), answers, strict=True):
                _close(one, other)
        assert engine.state().prefix_bytes <= prefix_tokens * 384


@pytest.mark.parametrize("running", [True, False])
def test_the_same_prompt_under_another_set_takes_nothing_over(
    tiny_base: BaseModel, loud_adapters: Load, alone: Engine, running: bool
) -> None:
    """Neither from a row that runs nor from the store, be it another adapter, another weight or none."""
    prompt = tuple(range(300, 330))
    others: list[Set] = [(), (("loud0", 0.5),), (("loud1", 1.0),), (("loud0", 1.0), ("loud1", 1.0))]
    with _engine(tiny_base, loud_adapters, 1 << 20) as engine:
        first = Generation(prompt, (("loud0", 1.0),), replace(GREEDY, max_tokens=60 if running else 2))
        one = submit(engine, first)
        assert one.started.wait(10)
        if not running:
            one.wait()
        for chosen in others:
            answer = generate(engine, [Generation(prompt, chosen, GREEDY)])[0]
            assert answer.finish.usage.cached_tokens == 0
            _close(answer, generate(alone, [Generation(prompt, chosen, GREEDY)])[0])
        again = generate(engine, [replace(first, sampling=GREEDY)])[0]
        assert again.finish.usage.cached_tokens == 29
        _close(again, generate(alone, [replace(first, sampling=GREEDY)])[0])


def test_loud_adapters_are_loud(tiny_base: BaseModel, loud_adapters: Load) -> None:
    """The test above would say nothing if the sets agreed."""
    chosen: list[Set] = [(), (("loud0", 1.0),), (("loud0", 0.5),), (("loud1", 1.0),), (("loud0", -1.0),)]
    with _engine(tiny_base, loud_adapters, 1 << 20) as engine:
        answers = generate(engine, [Generation(tuple(range(300, 330)), one, GREEDY) for one in chosen])
    assert len({answer.tokens[0] for answer in answers}) == len(chosen)


def test_prefixes_outlive_their_adapters_in_the_pool(tiny_base: BaseModel, loud_adapters: Load) -> None:
    first = Generation(tuple(range(300, 340)), (("loud0", 1.0),), GREEDY)
    size = 3 * sum(sum(shape) for shape in _layers(tiny_base).values()) * 8
    with _engine(tiny_base, loud_adapters, 1 << 20, pool_bytes=size) as engine:
        before = generate(engine, [first])[0]
        generate(engine, [replace(first, adapters=(("loud1", 1.0),))])
        assert list(engine.state().resident) == ["loud1"]
        again = generate(engine, [first])[0]
    assert again.finish.usage.cached_tokens == 39
    _close(again, before)


def test_a_long_prompt_does_not_hold_up_those_that_run(tiny_base: BaseModel, loud_adapters: Load) -> None:
    order: list[str] = []
    with _engine(tiny_base, loud_adapters, 0, prefill_tokens=8) as engine:
        running = submit(engine, Generation((5, 6), (), replace(GREEDY, max_tokens=80)))
        assert running.started.wait(10)

        def watch(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            order.append("prompt" if output.shape[1] > 1 else "token")

        handle = tiny_base.model.model.norm.register_forward_hook(watch)
        try:
            long = submit(engine, Generation(tuple(range(100, 180)), (("loud0", 1.0),), GREEDY))
            short = submit(engine, Generation((7, 8, 9), (), GREEDY))
            short.wait()
            assert not long.started.is_set()  # came later, needs one pass, and takes turns with the long one
            long.wait()
        finally:
            handle.remove()
        passes = [at for at, kind in enumerate(order) if kind == "prompt"]
        assert len(passes) == 11
        assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(passes))
        alone = [generate(engine, [one])[0] for one in (
            Generation(tuple(range(100, 180)), (("loud0", 1.0),), GREEDY), Generation((7, 8, 9), (), GREEDY),
        )]  # fmt: skip
        _close(long, alone[0])
        _close(short, alone[1])
        assert running.ticket is not None
        running.ticket.cancel()


def test_a_long_prompt_is_cancelled_between_its_passes(tiny_base: BaseModel, loud_adapters: Load) -> None:
    passes: list[int] = []
    with _engine(tiny_base, loud_adapters, 0, prefill_tokens=8) as engine:
        twice = [Generation(tuple(range(100, 190)), (), GREEDY)] * 2
        answers = [submit(engine, one) for one in twice]

        def cancel(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            passes.append(output.shape[1])
            for answer in answers:
                if answer.ticket is not None:
                    answer.ticket.cancel()

        handle = tiny_base.model.model.norm.register_forward_hook(cancel)
        try:
            assert all(answer.wait().finish.reason == "cancelled" for answer in answers)
        finally:
            handle.remove()
        assert len(passes) <= 3
        assert (engine.state().running, engine.state().waiting) == (0, 0)
        assert len(generate(engine, [twice[0]])[0].tokens) == 6


def test_memory_stays_flat_over_many_requests(tiny_base: BaseModel, loud_adapters: Load) -> None:
    def load_of(count: int, engine: Engine) -> tuple[int, int]:
        for start in range(0, count, 50):
            generate(engine, [
                Generation(
                    tuple((7 * at + (start + index) % 90 + offset) % 40000 for at in range(20)),
                    ((f"loud{index % 3}", 1.0 + (start + index) % 5),) if index % 4 else (),
                    Sampling(max_tokens=1 + index % 3, temperature=0.0),
                )
                for index, offset in ((index, start * index) for index in range(50))
            ])  # fmt: skip
        gc.collect()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and not one.is_mkldnn]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        return len(tensors), sum(storages.values())

    with _engine(tiny_base, loud_adapters, 300 * 384) as engine:
        count, size = load_of(150, engine)
        later_count, later_size = load_of(500, engine)
        assert 250 * 384 < engine.state().prefix_bytes <= 300 * 384
        assert engine._unfinished == {}
    assert later_size <= size * 1.02
    assert later_count <= count + 6 * 30  # a prefix is six tensors; how many fit depends on where texts part


def test_prompts_that_are_scored_do_not_wait_for_each_other(tiny_base: BaseModel, loud_adapters: Load) -> None:
    common = tuple(range(200, 240))
    scored = replace(GREEDY, max_tokens=0, prompt_logprobs=1)
    asked = [Generation((*common, 5 + index, 9), (), scored) for index in range(6)]
    engine = Engine(tiny_base, loud_adapters, pool_bytes=1 << 20, max_rows=4, max_waiting=9, threads=1)
    answers = [submit(engine, one) for one in asked]
    with _computed(tiny_base) as seen, engine:
        for answer in answers:
            answer.wait()
    assert seen == [6 * 42]
