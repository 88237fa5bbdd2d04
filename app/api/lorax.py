"""LoRAX's generation calls, as aliases of what generates here: POST /generate, /generate_stream, and / for its client.

`merged_adapters` with the strategy `linear` is a weighted set, applied exactly: ΔW = Σ wᵢ ΔWᵢ, for any ranks and
alphas. (LoRAX multiplies both factors by the weight, which squares it and mixes the adapters.) The strategies that
prune are merges, which take seconds and deserve a name: they are refused with the recipe that POST /v1/merges takes.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.answer_docs import STREAMED
from app.api.access import HouseDep, needs
from app.api.streaming import HeldStream
from app.asking import addressed
from app.errors import as_problem
from app.generation import ChosenSet, Run, choose_set, while_connected
from app.house import House
from app.lorax_answers import error_type, finish_reason, mean_logprob, sequence_json, token_json
from app.openai_answers import Answer, collect
from app.problems import Refusal
from app.schemas_lorax import STRATEGIES, LoraxBody, LoraxCompatBody, Parameters
from serving.engine import Generation
from serving.errors import ServingError
from serving.generation import Event, FinishEvent, TokenEvent
from serving.sampling import Sampling

router = APIRouter(tags=["generation"])

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for, checked."""

    body: LoraxBody
    chosen: ChosenSet
    generations: list[Generation]
    special: frozenset[int]

    @property
    def asked(self) -> Parameters:
        """The request's parameters."""
        return self.body.parameters

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens are told beside each."""
        return self.body.parameters.return_k_alternatives


@router.post("/generate", dependencies=[needs("generate")])
async def generate(house: HouseDep, request: Request, body: LoraxBody) -> Response:
    """Continue a text, with the base model, an adapter or several."""
    answer, headers = await _whole(house, request, body)
    return JSONResponse(answer, headers=headers)


@router.post("/generate_stream", dependencies=[needs("generate")], response_class=StreamingResponse)
async def generate_stream(house: HouseDep, request: Request, body: LoraxBody) -> Response:
    """The same as server-sent events, one a token; the last one holds the whole text."""
    return await _streamed(house, request, body)


@router.post("/", responses=STREAMED, dependencies=[needs("generate")])
async def generate_compatible(house: HouseDep, request: Request, body: LoraxCompatBody) -> Response:
    """Either of the two, as LoRAX's own client asks; a whole answer comes in a list."""
    if body.stream:
        return await _streamed(house, request, body)
    answer, headers = await _whole(house, request, body)
    return JSONResponse([answer], headers=headers)


async def _whole(house: House, request: Request, body: LoraxBody) -> tuple[Json, dict[str, str]]:
    work = await to_thread.run_sync(_prepare, house, body)
    generations = addressed(house.settings, request, body, work.generations)
    house.prompt_log.keep(generations)
    async with Run(house.engine, house.mailbox, generations) as run:
        answers = await while_connected(request, collect(run.events(), len(generations)))
    best, *others = sorted(answers, key=mean_logprob, reverse=True)
    usage = best.usage
    headers = _headers(house, work) | {
        "x-prompt-tokens": str(usage.prompt_tokens),
        "x-generated-tokens": str(usage.completion_tokens),
        "x-total-tokens": str(usage.prompt_tokens + usage.completion_tokens),
    }
    document: Json = {"generated_text": _text(work, best)}
    if work.asked.details or work.asked.decoder_input_details:
        details = _details(house, work, best) | {"prompt_tokens": usage.prompt_tokens, "skipped_tokens": 0}
        if len(answers) > 1:
            details["best_of_sequences"] = [
                {"generated_text": _text(work, other), **_details(house, work, other)} for other in others
            ]
        document["details"] = details
    return document, headers


async def _streamed(house: House, request: Request, body: LoraxBody) -> Response:
    asked = body.parameters
    if (asked.best_of or 1) > 1 or asked.decoder_input_details:
        field = "best_of" if (asked.best_of or 1) > 1 else "decoder_input_details"
        raise Refusal(422, "invalid-request", f"Field 'parameters.{field}' cannot be streamed.", field=field)
    work = await to_thread.run_sync(_prepare, house, body)
    generations = addressed(house.settings, request, body, work.generations)
    house.prompt_log.keep(generations)
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(Run(house.engine, house.mailbox, generations))
        events = run.events()
        first = await while_connected(request, anext(events))
        held = stack.pop_all()

    async def chunks() -> AsyncIterator[str]:
        answer = Answer(0)
        waiting: TokenEvent | None = None  # the last token comes with the whole text, so each waits for the next
        try:
            async for event in _events(first[1], events):
                answer.take(event)
                if isinstance(event, FinishEvent):
                    last = answer.end or waiting
                    if answer.end is not None and waiting is not None:
                        yield _event(house, work, waiting)
                    yield _event(house, work, last, answer)
                elif isinstance(event, TokenEvent):
                    if waiting is not None:
                        yield _event(house, work, waiting)
                    waiting = event
        except ServingError as error:
            problem = as_problem(error)
            yield _sse({"error": problem["detail"], "error_type": error_type(problem["status"])})

    headers = {"cache-control": "no-store"} | _headers(house, work)
    return HeldStream(held, chunks(), headers)


async def _events(first: Event, rest: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[Event]:
    yield first
    async for _, event in rest:
        yield event


def _event(house: House, work: Work, token: TokenEvent | None, ended: Answer | None = None) -> str:
    shown = None if token is None else token_json(token, house.prompts.piece, work.special, work.alternatives)
    document: Json = {"token": shown, "generated_text": None, "details": None}
    if ended is not None:
        document["generated_text"] = _text(work, ended)
        if work.asked.details:
            document["details"] = {
                "finish_reason": finish_reason(ended),
                "prompt_tokens": ended.usage.prompt_tokens,
                "generated_tokens": ended.usage.completion_tokens,
                "seed": work.asked.seed,
            }
    return _sse(document)


def _sse(document: Json) -> str:
    return f"data:{json.dumps(document, ensure_ascii=False)}\n\n"


def _text(work: Work, answer: Answer) -> str:
    return (work.body.inputs if work.asked.return_full_text else "") + answer.text


def _details(house: House, work: Work, answer: Answer) -> Json:
    piece = house.prompts.piece
    tokens = [*answer.tokens, *([answer.end] if answer.end is not None else [])]
    shown = [token_json(token, piece, work.special, work.alternatives) for token in tokens]
    prefill = [
        {"id": token.token_id, "text": piece(token.token_id), "logprob": token.logprob} for token in answer.prompt
    ]
    return sequence_json(answer, shown, prefill, work.asked.seed)


def _headers(house: House, work: Work) -> dict[str, str]:
    refs = ",".join(member.ref for member in work.chosen.members)
    return {"x-model-id": house.base.name} | ({"x-adapter-id": refs, "x-adapter-source": "hub"} if refs else {})


def _prepare(house: House, body: LoraxBody) -> Work:
    """Everything that can be wrong is found here, before anything is queued."""
    asked = body.parameters
    count = asked.best_of or 1
    if count > house.settings.max_choices:
        detail = f"At most {house.settings.max_choices} answers are compared; best_of is {count}."
        raise Refusal(422, "invalid-request", detail, field="parameters.best_of")
    chosen = _chosen(house, asked)
    prompt = house.prompts.text(body.inputs)
    if asked.truncate is not None:
        prompt = prompt[-asked.truncate :]
    sampling = Sampling(
        max_tokens=asked.max_new_tokens,
        temperature=(1.0 if asked.temperature is None else asked.temperature) if asked.samples else 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
        stop=tuple(asked.stop),
        ignore_eos=asked.ignore_eos_token,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        logprobs=asked.return_k_alternatives or 0,
        prompt_logprobs=0 if asked.decoder_input_details else None,
        constraint=None if asked.response_format is None else asked.response_format.constraint,
    )
    generations = [Generation(prompt, chosen.for_engine, sampling, chosen.combine) for _ in range(count)]
    return Work(body, chosen, generations, frozenset(house.base.tokenizer.all_special_ids))


def _chosen(house: House, asked: Parameters) -> ChosenSet:
    merged = asked.merged_adapters
    if merged is None:
        return choose_set(house, asked.adapter_id or house.base.name, None)
    if merged.merge_strategy in STRATEGIES:
        recipe = merged.recipe
        detail = (
            f"The strategy '{merged.merge_strategy}' makes a new adapter, which is not done within a request: merge"
            f" once by POST /v1/merges (method '{recipe['method']}'), and give the result as adapter_id."
        )
        raise Refusal(422, "merge-first", detail, field="parameters.merged_adapters.merge_strategy", recipe=recipe)
    return choose_set(house, house.base.name, merged.sources)
