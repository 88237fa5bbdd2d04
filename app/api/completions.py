"""POST /v1/completions, OpenAI's protocol: plain continuations of one or several prompts, and prompts scored."""

from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.answer_docs import STREAMED
from app.api.access import HouseDep, needs
from app.api.streaming import answer_stream, answer_whole
from app.asking import addressed
from app.generation import ChosenSet, choose_set, sampling_of
from app.house import House
from app.openai_answers import Answer, Shape, TextOffsets, text_logprobs
from app.problems import Refusal
from app.schemas_openai import CompletionBody
from app.uncertainty import with_uncertainty
from serving.engine import Generation

router = APIRouter(prefix="/v1", tags=["generation"])

DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for: the set, its generations, and for each prompt the text that is echoed."""

    chosen: ChosenSet
    generations: list[Generation]
    echoed: list[str]


@router.post("/completions", responses=STREAMED, dependencies=[needs("generate")])
async def completions(house: HouseDep, request: Request, body: CompletionBody) -> Response:
    """Continue prompts (texts or token ids), with the base model, an adapter, or a weighted set of adapters."""
    work = await to_thread.run_sync(_prepare, house, body)
    generations = addressed(house.settings, request, body, work.generations)
    shape = Shape("text_completion", body.model, work.chosen.as_json, body.n, "cmpl")
    piece = house.prompts.piece
    offsets = [TextOffsets(house.prompts.spelled, house.prompts.left_out) for _ in generations]

    def choice(answer: Answer) -> dict[str, Any]:
        prompt = work.echoed[answer.index // body.n]
        opens = not body.stream or bool(answer.prompt)
        ending = [answer.end] if answer.end is not None else []
        tokens = [*answer.prompt, *answer.tokens, *ending]
        logprobs = None
        if body.logprobs is not None and (tokens or not body.stream):
            logprobs = text_logprobs(tokens, piece, offsets[answer.index].of(answer, len(prompt)))
        text = prompt + answer.text if opens else answer.text
        told = {"index": answer.index, "text": text, "logprobs": logprobs, "finish_reason": answer.reason}
        return with_uncertainty(told, tokens, answer.uncertainty)

    if not body.stream:
        return await answer_whole(house, request, generations, shape, choice)
    silent = body.echo and body.logprobs is None  # else the prompt comes with its log-probabilities
    return await answer_stream(
        house,
        request,
        generations,
        shape,
        opening=[_opening(i, work.echoed[i // body.n]) for i in range(len(work.generations))] if silent else [],
        choice_of=choice,
        chunk_kind="text_completion",
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _opening(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}


def _prepare(house: House, body: CompletionBody) -> Work:
    """Everything that can be wrong is found here, before anything is queued."""
    settings = house.settings
    if len(body.prompt) > settings.max_prompts:
        detail = f"There are {len(body.prompt)} prompts; at most {settings.max_prompts} are continued in one request."
        raise Refusal(422, "invalid-request", detail, field="prompt")
    if body.n > settings.max_choices:
        detail = f"At most {settings.max_choices} choices are generated at once; n is {body.n}."
        raise Refusal(422, "invalid-request", detail, field="n")
    chosen = choose_set(house, body.model, body.adapters, body.combine)
    most = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = [house.prompts.text(item) if isinstance(item, str) else tuple(item) for item in body.prompt]
    samplings = [
        sampling_of(
            body,
            max_tokens=most,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
            choice=choice,
        )
        for choice in range(body.n)
    ]
    generations = [
        Generation(prompt, chosen.for_engine, sampling, chosen.combine) for prompt in prompts for sampling in samplings
    ]
    return Work(chosen, generations, [_echo(house, body, item) for item in body.prompt])


def _echo(house: House, body: CompletionBody, prompt: str | list[int]) -> str:
    """What comes before the answers to a prompt. Ids that are no tokens are left to the engine to refuse."""
    if not body.echo:
        return ""
    if isinstance(prompt, str):
        return prompt
    return house.prompts.shown([token for token in prompt if token < house.base.vocabulary])
