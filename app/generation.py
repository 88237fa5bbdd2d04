"""From a generation request to the engine and back: which adapters, which tokens, and the events as they come."""

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio import to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.house import House
from app.problems import Refusal
from app.schemas import SourceBody
from app.schemas_openai import GenerateBody
from serving.engine import Engine, Event, FailEvent, FinishEvent, Generation, Sampling, Ticket
from store.errors import BadReference, UnknownReference
from store.records import Version

Result = TypeVar("Result")
LARGEST_WEIGHT = 3.4028234e38  # of float32, in which adapters are applied


@dataclass(frozen=True, slots=True)
class ChosenSet:
    """The adapters of a request, pinned: whatever an alias or "latest" means later, this is what it runs with."""

    members: tuple[tuple[Version, float], ...]

    @property
    def for_engine(self) -> tuple[tuple[str, float], ...]:
        """(version digest, weight) pairs; an adapter that was named twice has the sum of its weights."""
        weights: dict[str, float] = {}
        for version, weight in self.members:
            weights[version.digest] = weights.get(version.digest, 0.0) + weight
        return tuple(weights.items())

    @property
    def as_json(self) -> list[dict[str, Any]]:
        """What the answer says it was made with."""
        weights: dict[str, float] = {}
        for version, weight in self.members:
            weights[version.ref] = weights.get(version.ref, 0.0) + weight
        return [{"ref": ref, "weight": weight} for ref, weight in weights.items()]


def choose_set(house: House, model: str, adapters: Sequence[SourceBody] | None) -> ChosenSet:
    """The adapters that `model` and `adapters` mean at this moment; none for the bare base model.

    Raises:
        UnknownReference, BadReference, Refusal: never an answer from the base in place of an adapter.
    """
    if adapters is None:
        members = [] if model == house.base.name else [(_resolve_model(house, model), 1.0)]
    elif model != house.base.name:
        detail = f"With adapters, model must be the base model, '{house.base.name}'; {model[:120]!r} is not."
        raise Refusal(422, "invalid-request", detail, field="model", known=[house.base.name])
    elif len(adapters) > house.settings.max_sources:
        detail = f"The set has {len(adapters)} adapters; at most {house.settings.max_sources} are applied together."
        raise Refusal(422, "too-many-sources", detail, field="adapters")
    else:
        members = [(house.registry.resolve(a.ref), 1.0 if a.weight is None else a.weight) for a in adapters]
    for version, _ in members:
        _check_served(house, version)
    chosen = ChosenSet(tuple(members))
    for entry in chosen.as_json:
        if abs(entry["weight"]) > LARGEST_WEIGHT:
            detail = (
                f"The weight of {entry['ref']} is {entry['weight']:g}; at most {LARGEST_WEIGHT:.3g} can be applied."
            )
            raise Refusal(422, "bad-weights", detail, field="adapters")
    return chosen


def _resolve_model(house: House, model: str) -> Version:
    try:
        return house.registry.resolve(model)
    except BadReference:
        missing, near = f"there is no model {model[:120]!r}", []
    except UnknownReference as error:
        missing, near = error.missing, error.near
    known = [*near, *difflib.get_close_matches(model, [house.base.name], cutoff=0.5)]
    hint = f"; did you mean {', '.join(known)}?" if known else f"; the base model is '{house.base.name}'."
    raise Refusal(404, "unknown-reference", missing[:1].upper() + missing[1:] + hint, reference=model, near=known)


def _check_served(house: House, version: Version) -> None:
    if not version.servable:
        detail = f"{version.ref} cannot be served. {' '.join(version.notes)}"
        raise Refusal(422, "not-servable", detail, reference=version.ref, reasons=list(version.notes))
    if version.base_model != house.base.name:
        made_for = f"for '{version.base_model}'" if version.base_model else "for a base model that it does not name"
        detail = f"{version.ref} was made {made_for}; this service serves '{house.base.name}'."
        raise Refusal(409, "other-base", detail, reference=version.ref, known=[house.base.name])


def sampling_of(
    body: GenerateBody,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    choice: int,
    prompt_logprobs: int | None = None,
) -> Sampling:
    """The request's sampling for its `choice`-th answer; with a seed, each choice has its own that follows from it.

    Raises InvalidSampling.
    """
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p,
        seed=None if body.seed is None else (body.seed + choice) % 2**63,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=body.constraint,
    )


class Run:
    """Several continuations at once. Leaving the context cancels whatever has not ended."""

    def __init__(self, engine: Engine, generations: Sequence[Generation]) -> None:
        self._engine = engine
        self._generations = generations
        self._tickets: list[Ticket] = []
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        try:
            await to_thread.run_sync(self._submit)
        except BaseException:
            self.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End all continuations at the engine's next step; those that have ended stay as they are."""
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(index of the continuation, event) until all have ended. Raises the ServingError of one that fails."""
        unfinished = len(self._generations)
        while unfinished:
            index, event = await self._queue.get()
            if isinstance(event, FailEvent):
                raise event.error
            yield index, event
            if isinstance(event, FinishEvent):
                unfinished -= 1

    def _submit(self) -> None:
        for index, generation in enumerate(self._generations):
            self._tickets.append(self._engine.submit(generation, self._listener(index)))

    def _listener(self, index: int) -> Any:
        def on_event(event: Event) -> None:
            # The engine's thread calls this; at shutdown the loop may be gone before it.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return on_event


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientDisconnect."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
