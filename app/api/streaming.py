"""Running a generation request, whole or streamed: what chat and completions share.

Log-probabilities of long prompts are many; they become text on a thread of their own, so that the event loop goes on.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.generation import Run, while_connected
from app.house import House
from app.openai_answers import DONE, Answer, Shape, collect, set_form, sse, sse_error
from serving.engine import Event, Generation, PromptEvent, TokenEvent
from serving.errors import ServingError

Json = dict[str, Any]
ChoiceOf = Callable[[Answer], Json]
"""A whole answer, or what one event adds to a streamed one, as the JSON of a choice."""

_LONG = 256  # tokens with log-probabilities that are rendered aside


class HeldStream(StreamingResponse):
    """Server-sent events of a run, which `held` leaves at their end: also for a client that is gone before the first,
    of whose chunks none is ever asked for."""

    def __init__(self, held: AsyncExitStack, chunks: AsyncIterator[str], headers: Mapping[str, str]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def answer_whole(
    house: House, request: Request, generations: Sequence[Generation], shape: Shape, choice_of: ChoiceOf
) -> Response:
    """Wait for all choices, then answer. A client that hangs up cancels them."""
    house.prompt_log.keep(generations)
    async with Run(house.engine, house.mailbox, generations, shape.adapters) as run:
        answers = await while_connected(request, collect(run.events(), len(generations)))

    def render() -> Response:
        choices = [choice_of(answer) for answer in answers]
        return JSONResponse(shape.envelope(choices, usage=shape.usage(answers), **set_form(answers[0])))

    long = sum(len(answer.prompt) + len(answer.tokens) for answer in answers) > _LONG
    return await to_thread.run_sync(render) if long else render()


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
    house.prompt_log.keep(generations)
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(Run(house.engine, house.mailbox, generations, shape.adapters))
        events = run.events()
        first = await while_connected(request, anext(events))
        held = stack.pop_all()

    usage: Json = {"usage": None} if include_usage else {}
    frame = shape.frame(kind=chunk_kind, **usage)

    def chunk(event: Event, added: Answer) -> str:
        choice = choice_of(added)
        silent = isinstance(event, TokenEvent) and not event.text and not choice.get("logprobs")
        if silent:
            return ""
        if form := set_form(added):
            return sse(shape.envelope([choice], kind=chunk_kind, **usage, **form))
        return frame.around(choice)

    async def chunks() -> AsyncIterator[str]:
        answers = [Answer(index) for index in range(len(generations))]
        for choice in opening:
            yield frame.around(choice)
        try:
            async for index, event in _chained(first, events):
                added = Answer(index)
                added.take(event)
                answers[index].take(event)
                long = isinstance(event, PromptEvent) and len(event.tokens) > _LONG
                text = await to_thread.run_sync(chunk, event, added) if long else chunk(event, added)
                if text:
                    yield text
        except ServingError as error:
            yield sse_error(error)
            return
        if include_usage:
            yield sse(shape.envelope([], kind=chunk_kind, usage=shape.usage(answers)))
        yield DONE

    return HeldStream(held, chunks(), {"cache-control": "no-store"})


async def _chained(
    first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]]
) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for item in rest:
        yield item
