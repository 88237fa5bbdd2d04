"""Running a generation request, whole or streamed: what chat and completions share."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.generation import Run, while_connected
from app.house import House
from app.openai_answers import DONE, Answer, Shape, collect, sse, sse_error
from serving.engine import Event, FinishEvent, Generation, TokenEvent
from serving.errors import ServingError

Json = dict[str, Any]
# (index of the choice, its new tokens, its text, how it ended or None, characters before) -> the choice as JSON
ChoiceOf = Callable[[int, Sequence[TokenEvent], str, str | None, int], Json]


async def answer_whole(
    house: House, request: Request, generations: Sequence[Generation], shape: Shape, choice_of: ChoiceOf
) -> Response:
    """Wait for all choices, then answer. A client that hangs up cancels them."""
    async with Run(house.engine, generations) as run:
        answers = await while_connected(request, collect(run.events(), len(generations)))
    choices = [choice_of(i, answer.tokens, answer.text, answer.reason, 0) for i, answer in enumerate(answers)]
    return JSONResponse(shape.envelope(choices, usage=shape.usage(answers)))


async def answer_stream(
    house: House,
    request: Request,
    generations: Sequence[Generation],
    shape: Shape,
    *,
    opening: Sequence[Json],
    choice_of: ChoiceOf,
    chunk_kind: str,
    include_usage: bool,
) -> Response:
    """Answer with server-sent events. What fails before the first token is still an ordinary problem."""
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(Run(house.engine, generations))
        events = run.events()
        first = await while_connected(request, anext(events))
        held = stack.pop_all()

    async def chunks() -> AsyncIterator[str]:
        answers = [Answer() for _ in generations]
        usage: Json = {"usage": None} if include_usage else {}
        async with held:
            for choice in opening:
                yield sse(shape.envelope([choice], kind=chunk_kind, **usage))
            try:
                async for index, event in _chained(first, events):
                    before = len(answers[index].text)
                    answers[index].take(event)
                    news = _choice(index, event, before, choice_of)
                    if news is not None:
                        yield sse(shape.envelope([news], kind=chunk_kind, **usage))
            except ServingError as error:
                yield sse_error(error)
                return
            if include_usage:
                yield sse(shape.envelope([], kind=chunk_kind, usage=shape.usage(answers)))
            yield DONE

    return StreamingResponse(chunks(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _choice(index: int, event: Event, before: int, choice_of: ChoiceOf) -> Json | None:
    if isinstance(event, TokenEvent):
        choice = choice_of(index, [event], event.text, None, before)
        return choice if event.text or choice.get("logprobs") else None
    if isinstance(event, FinishEvent):
        return choice_of(index, [], "", event.reason, before)
    return None


async def _chained(
    first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]]
) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for item in rest:
        yield item
