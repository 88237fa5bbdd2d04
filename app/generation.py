"""From a generation request to the engine and back: which adapters, which tokens, and the events as they come."""

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio import CancelScope, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.house import House
from app.identity.caller import current
from app.mailbox import Mailbox
from app.observing.meter import Meter
from app.problems import Refusal
from app.revoked import in_force
from app.schemas import SourceBody
from app.schemas_openai import GenerateBody
from serving.generation import BARE_BASE, Combine, Event, FailEvent, FinishEvent, Generation, TokenEvent
from serving.protocol import Engine, Ticket
from serving.sampling import Sampling
from store.errors import BadReference, UnknownReference
from store.records import Version

Result = TypeVar("Result")
LARGEST_WEIGHT = 3.4028234e38  # of float32, in which adapters are applied


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter of a set, pinned; without a digest the bare base model, which may be a member of an ensemble."""

    ref: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class ChosenSet:
    """The adapters of a request, pinned: whatever an alias or "latest" means later, this is what it runs with."""

    members: tuple[Member, ...]
    combine: Combine

    @property
    def for_engine(self) -> tuple[tuple[str, float], ...]:
        """(version digest, weight) pairs as they were given; the engine adds up those of one adapter."""
        return tuple((member.digest, member.weight) for member in self.members)

    @property
    def as_json(self) -> dict[str, Any]:
        """What the answer says it was made with; an adapter that was named twice has the sum of its weights."""
        weights: dict[str, float] = {}
        for member in self.members:
            weights[member.ref] = weights.get(member.ref, 0.0) + member.weight
        adapters = [{"ref": ref, "weight": weight} for ref, weight in weights.items()]
        return {"adapters": adapters} | ({} if self.combine == "sum" else {"combine": self.combine})


def choose_set(house: House, model: str, adapters: Sequence[SourceBody] | None, combine: Combine = "sum") -> ChosenSet:
    """The adapters that `model` and `adapters` mean at this moment; none for the bare base model.

    Raises:
        UnknownReference, BadReference, Refusal: never an answer from the base in place of an adapter.
    """
    if adapters is None:
        version = model_version(house, model)
        members = [] if version is None else [_member(version, 1.0)]
    elif model != house.base.name:
        detail = f"With adapters, model must be the base model, '{house.base.name}'; {model[:120]!r} is not."
        raise Refusal(422, "invalid-request", detail, field="model", known=[house.base.name])
    elif len(adapters) > house.settings.max_sources:
        detail = f"The set has {len(adapters)} adapters; at most {house.settings.max_sources} are applied together."
        raise Refusal(422, "too-many-sources", detail, field="adapters")
    else:
        members = [
            Member(a.ref, BARE_BASE, _weight(a))
            if combine == "ensemble" and a.ref == house.base.name
            else _member(_checked(house, house.registry.resolve(named(house, a.ref))), _weight(a))
            for a in adapters
        ]
    chosen = ChosenSet(tuple(members), combine)
    for entry in chosen.as_json["adapters"]:
        if abs(entry["weight"]) > LARGEST_WEIGHT:
            detail = (
                f"The weight of {entry['ref']} is {entry['weight']:g}; at most {LARGEST_WEIGHT:.3g} can be applied."
            )
            raise Refusal(422, "bad-weights", detail, field="adapters")
    return chosen


def model_version(house: House, model: str) -> Version | None:
    """The version that `model` means at this moment; None for the base model.

    Raises:
        Refusal: there is no such model, it cannot be served, or not for this caller.
    """
    if model == house.base.name:
        return None
    try:
        return _checked(house, house.registry.resolve(named(house, model)))
    except BadReference:
        missing, near = f"there is no model {model[:120]!r}", []
    except UnknownReference as error:
        missing, near = error.missing, error.near
    known = [*near, *difflib.get_close_matches(model, [house.base.name], cutoff=0.5)]
    hint = f"; did you mean {', '.join(known)}?" if known else f"; the base model is '{house.base.name}'."
    raise Refusal(404, "unknown-reference", missing[:1].upper() + missing[1:] + hint, reference=model, near=known)


def named(house: House, model: str) -> str:
    """The reference behind a name that vLLM's load call gave; any other text is one itself."""
    return model if "/" in model or ":" in model else house.shelves.model_names.ref(model) or model


def _weight(source: SourceBody) -> float:
    return 1.0 if source.weight is None else source.weight


def _member(version: Version, weight: float) -> Member:
    return Member(version.ref, version.digest, weight)


def _checked(house: House, version: Version) -> Version:
    current().check("generate", version.namespace)
    in_force(version)
    if not version.servable:
        detail = f"{version.ref} cannot be served. {' '.join(version.notes)}"
        raise Refusal(422, "not-servable", detail, reference=version.ref, reasons=list(version.notes))
    if version.base_model != house.base.name:
        made_for = f"for '{version.base_model}'" if version.base_model else "for a base model that it does not name"
        detail = f"{version.ref} was made {made_for}; this service serves '{house.base.name}'."
        raise Refusal(409, "other-base", detail, reference=version.ref, known=[house.base.name])
    return version


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
    """Several continuations at once, with these adapters (references, for metrics). Leaving the context cancels
    whatever has not ended, and counts what was used against the caller's tokens a minute."""

    def __init__(
        self, engine: Engine, mailbox: Mailbox, generations: Sequence[Generation], adapters: Sequence[str] = ()
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._generations = generations
        self._adapters = adapters
        self._tickets: list[Ticket] = []
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._meter = current().tokens
        self._completion_tokens = 0

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
        await self._settle()

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
            self._completion_tokens += isinstance(event, TokenEvent)
            unfinished -= isinstance(event, FinishEvent)
            if not unfinished:
                await self._settle()  # before its end is told: who asks again at once meets the count
            yield index, event

    async def _settle(self) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            # A prompt counts once, however many answers it gets.
            prompts = {generation.prompt_ids for generation in self._generations}
            tokens = sum(map(len, prompts)) + self._completion_tokens
            with CancelScope(shield=True):  # a client that hangs up pays for what was generated
                await to_thread.run_sync(meter.spend, tokens)

    def _submit(self) -> None:
        if self._meter is not None:
            self._meter.check()
        for index, generation in enumerate(self._generations):
            self._tickets.append(self._engine.submit(generation, Meter(self._adapters, self._listener(index))))

    def _listener(self, index: int) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            self._mailbox.post(self._queue.put_nowait, (index, event))  # the engine's thread calls this

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
