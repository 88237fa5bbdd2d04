"""POST /v1/chat/completions, OpenAI's protocol."""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.answer_docs import STREAMED
from app.api.access import HouseDep, needs
from app.api.streaming import answer_stream, answer_whole
from app.asking import addressed
from app.generation import ChosenSet, choose_set, sampling_of
from app.house import House
from app.openai_answers import Answer, Shape, chat_logprobs
from app.problems import Refusal
from app.schemas_openai import ChatBody
from app.uncertainty import with_uncertainty
from serving.engine import Generation

router = APIRouter(prefix="/v1", tags=["generation"])


@router.post("/chat/completions", responses=STREAMED, dependencies=[needs("generate")])
async def chat_completions(house: HouseDep, request: Request, body: ChatBody) -> Response:
    """Go on with a conversation, with the base model, an adapter, or a weighted set of adapters."""
    chosen, generations = await to_thread.run_sync(_prepare, house, body)
    generations = addressed(house.settings, request, body, generations)
    shape = Shape("chat.completion", body.model, chosen.as_json, body.n, "chatcmpl")
    prompts = house.prompts

    def choice(answer: Answer) -> dict[str, Any]:
        whole = {"role": "assistant", "content": answer.text, "refusal": None}
        content = whole if not body.stream else {"content": answer.text} if answer.reason is None else {}
        wanted = body.logprobs and (answer.tokens or not body.stream)
        logprobs = chat_logprobs(answer.tokens, prompts.piece, prompts.spelled) if wanted else None
        member = "delta" if body.stream else "message"
        told = {"index": answer.index, member: content, "logprobs": logprobs, "finish_reason": answer.reason}
        return with_uncertainty(told, answer.tokens, answer.uncertainty)

    if not body.stream:
        return await answer_whole(house, request, generations, shape, choice)
    hello = {"role": "assistant", "content": ""}
    return await answer_stream(
        house,
        request,
        generations,
        shape,
        opening=[{"index": i, "delta": hello, "logprobs": None, "finish_reason": None} for i in range(body.n)],
        choice_of=choice,
        chunk_kind="chat.completion.chunk",
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _prepare(house: House, body: ChatBody) -> tuple[ChosenSet, list[Generation]]:
    """Everything that can be wrong is found here, before anything is queued."""
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(422, "invalid-request", "top_logprobs needs logprobs to be true.", field="top_logprobs")
    if body.n > house.settings.max_choices:
        detail = f"At most {house.settings.max_choices} choices are generated at once; n is {body.n}."
        raise Refusal(422, "invalid-request", detail, field="n")
    chosen = choose_set(house, body.model, body.adapters, body.combine)
    continued = body.continue_final_message
    prompt = house.prompts.chat(
        body.messages,
        opened=not continued if body.add_generation_prompt is None else body.add_generation_prompt,
        continued=continued,
        variables=body.chat_template_kwargs,
    )
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return chosen, [
        Generation(
            prompt, chosen.for_engine, sampling_of(body, max_tokens=most, logprobs=logprobs, choice=i), chosen.combine
        )
        for i in range(body.n)
    ]
