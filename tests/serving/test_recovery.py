"""Failures end what they must and nothing else; every request hears of its end, and the engine goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.engine import Engine, Event, FailEvent, Generation, Sampling
from serving.errors import EngineClosed, StepFailed
from serving.memory import out_of_memory
from tests.serving.collecting import Collected, generate, submit

Shape = tuple[int, int]
GREEDY = Sampling(max_tokens=8, temperature=0.0, logit_bias={2: -100.0})
PROMPTS = [tuple(range(100 * index + 3, 100 * index + 9 + index)) for index in range(4)]


@pytest.fixture
def engine(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> Iterator[Engine]:
    """Not started: what is submitted first joins as one group."""
    options = {"pool_bytes": 1 << 20, "prefix_bytes": 1 << 20, "max_rows": 4, "max_waiting": 16, "threads": 1}
    engine = Engine(tiny_base, tiny_adapters, **options)
    yield engine
    engine.close()


@contextmanager
def _breaking(base: BaseModel, error: BaseException, when: Callable[[Shape], bool]) -> Iterator[list[Shape]]:
    """Passes of (rows, tokens) for which `when` holds raise; gives those that did."""
    broken: list[Shape] = []

    def explode(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shape = (output.shape[0], output.shape[1])
        if when(shape):
            broken.append(shape)
            raise error

    handle = base.model.model.layers[1].register_forward_hook(
        lambda module, args, output: explode(module, args, output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield broken
    finally:
        handle.remove()


def _works(engine: Engine) -> list[list[int]]:
    """All prompts' answers, which are always the same."""
    answers = generate(engine, [Generation(prompt, (("a1", 1.0),), GREEDY) for prompt in PROMPTS])
    assert engine.state().alive
    assert (engine.state().running, engine.state().waiting) == (0, 0)
    assert set(engine.state().resident.values()) == {0}
    return [answer.tokens for answer in answers]


def _submit(engine: Engine) -> list[Collected]:
    return [submit(engine, Generation(prompt, (("a1", 1.0),), GREEDY)) for prompt in PROMPTS]


def _failed(answer: Collected, step: str) -> None:
    error = answer.wait().error
    assert isinstance(error, StepFailed)
    assert error.step == step
    assert sum(isinstance(event, FailEvent) for event in answer.events) == 1


def test_when_memory_ends_for_a_group_each_is_tried_alone(engine: Engine, tiny_base: BaseModel) -> None:
    answers = _submit(engine)
    with _breaking(tiny_base, MemoryError(), lambda shape: shape[0] > 1 and shape[1] > 1) as broken, engine:
        tokens = [answer.wait().tokens for answer in answers]
        assert broken == [(4, 9)]
        assert tokens == _works(engine)


def test_one_prompt_without_memory_fails_alone(engine: Engine, tiny_base: BaseModel) -> None:
    answers = _submit(engine)
    longest = len(PROMPTS[-1])
    with _breaking(tiny_base, torch.OutOfMemoryError("no memory"), lambda shape: shape[1] == longest) as broken, engine:
        _failed(answers[-1], "prefill")
        assert all(len(answer.wait().tokens) == 8 for answer in answers[:-1])
        assert broken == [(4, longest), (1, longest)]
    # The context has closed the engine.
    with pytest.raises(EngineClosed):
        submit(engine, Generation(PROMPTS[0], (), GREEDY))


def test_any_other_failure_of_a_pass_is_the_group_s(engine: Engine, tiny_base: BaseModel) -> None:
    answers = _submit(engine)
    engine.start()
    with _breaking(tiny_base, RuntimeError("a kernel broke"), lambda shape: shape[1] > 1) as broken:
        for answer in answers:
            _failed(answer, "prefill")
    assert broken == [(4, 9)]
    assert all(len(tokens) == 8 for tokens in _works(engine))


def test_a_decoding_step_without_memory_is_tried_again_with_more(engine: Engine, tiny_base: BaseModel) -> None:
    generate(engine.start(), [Generation(tuple(range(50)), (), GREEDY)])
    assert engine.state().prefix_bytes > 0
    expected, once = _works(engine), iter([True])
    with _breaking(tiny_base, MemoryError(), lambda shape: shape[1] == 1 and next(once, False)) as broken:
        answers = _submit(engine)
        assert [answer.wait().tokens for answer in answers] == expected
    assert len(broken) == 1


def test_if_that_is_not_enough_the_longest_rows_give_way(engine: Engine, tiny_base: BaseModel) -> None:
    answers = _submit(engine)
    with _breaking(tiny_base, MemoryError(), lambda shape: shape[1] == 1 and shape[0] > 2), engine:
        for answer in answers[2:]:
            _failed(answer, "decode")
        assert [answer.wait().tokens for answer in answers[:2]] == _one_by_one(engine)[:2]


def _one_by_one(engine: Engine) -> list[list[int]]:
    return [generate(engine, [Generation(prompt, (("a1", 1.0),), GREEDY)])[0].tokens for prompt in PROMPTS]


def test_a_scheduler_that_fails_ends_those_that_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    running = submit(engine.start(), Generation((5, 6, 7), (), replace(GREEDY, max_tokens=80)))
    assert running.started.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "known", _raise(ZeroDivisionError("a bug")))
        _failed(submit(engine, Generation(PROMPTS[0], (), GREEDY)), "scheduling")
    assert len(running.wait().tokens) == 80
    assert all(len(tokens) == 8 for tokens in _works(engine))


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), SystemExit("end this thread")])
def test_whatever_fails_outside_the_steps_everybody_hears_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    answers = _submit(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine._steps, "_choose", _raise(error))
        engine.start()
        for answer in answers:
            _failed(answer, "engine")
    assert all(len(tokens) == 8 for tokens in _works(engine))


def test_a_thread_that_is_ended_is_replaced(engine: Engine, tiny_base: BaseModel) -> None:
    answers = [*_submit(engine), *_submit(engine)]
    first = engine.start()._thread
    with _breaking(tiny_base, SystemExit("end this thread"), lambda shape: shape[1] == 1):
        for answer in answers:
            _failed(answer, "engine")
    assert all(len(tokens) == 8 for tokens in _works(engine))
    assert engine._thread is not first
    assert first is not None
    first.join(10)
    assert not first.is_alive()
    engine.close()
    assert not engine.state().alive


def test_a_request_submitted_by_a_listener_that_hears_of_a_failure_is_served(
    engine: Engine, tiny_base: BaseModel
) -> None:
    second = Collected()

    def again(event: Event) -> None:
        if isinstance(event, FailEvent):
            engine.submit(Generation(PROMPTS[1], (), GREEDY), second)

    broken = iter([True])
    with _breaking(tiny_base, SystemExit(), lambda shape: next(broken, False)):
        engine.submit(Generation(PROMPTS[0], (), GREEDY), again)
        engine.start()
        assert len(second.wait().tokens) == 8


def test_the_end_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(real.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def _raise(error: BaseException) -> Callable[..., object]:
    def explode(*args: object, **options: object) -> object:
        raise error

    return explode
