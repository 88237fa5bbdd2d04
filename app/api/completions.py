"""POST /v1/completions, OpenAI's protocol: plain continuations of one or several prompts."""

from collections.abc import Sequence
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.api.access import HouseDep
from app.api.streaming import answer_stream, answer_whole
from app.generation import ChosenSet, choose_set, sampling_of
from app.house import House
from app.openai_answers import Shape, text_logprobs
from app.problems import Refusal
from app.schemas_openai import CompletionBody
from serving.engine import Generation, TokenEvent

router = APIRouter(prefix="/v1", tags=["generation"])

DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post("/completions")
async def completions(house: HouseDep, request: Request, body: CompletionBody) -> Response:
    """Continue prompts (texts or token ids), with the base model, an adapter, or a weighted set of adapters."""
    chosen, generations = await to_thread.run_sync(_prepare, house, body)
    shape = Shape("text_completion", body.model, chosen.as_json, body.n, "cmpl")
    piece = house.prompts.piece

    def choice(index: int, tokens: Sequence[TokenEvent], text: str, reason: str | None, at: int) -> dict[str, Any]:
        wanted = body.logprobs is not None and (tokens or not body.stream)
        logprobs = text_logprobs(tokens, piece, at) if wanted else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    if not body.stream:
        return await answer_whole(house, request, generations, shape, choice)
    return await answer_stream(
        house,
        request,
        generations,
        shape,
        opening=[],
        choice_of=choice,
        chunk_kind="text_completion",
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _prepare(house: House, body: CompletionBody) -> tuple[ChosenSet, list[Generation]]:
    """Everything that can be wrong is found here, before anything is queued."""
    settings = house.settings
    if len(body.prompt) > settings.max_prompts:
        detail = f"There are {len(body.prompt)} prompts; at most {settings.max_prompts} are continued in one request."
        raise Refusal(422, "invalid-request", detail, field="prompt")
    if body.n > settings.max_choices:
        detail = f"At most {settings.max_choices} choices are generated at once; n is {body.n}."
        raise Refusal(422, "invalid-request", detail, field="n")
    chosen = choose_set(house, body.model, body.adapters)
    most = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = [house.prompts.text(item) if isinstance(item, str) else tuple(item) for item in body.prompt]
    return chosen, [
        Generation(prompt, chosen.for_engine, sampling_of(body, max_tokens=most, logprobs=body.logprobs, choice=i))
        for prompt in prompts
        for i in range(body.n)
    ]
