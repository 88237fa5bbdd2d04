"""Answers in OpenAI's shapes: whole, and as chunks of a stream; log-probabilities in both of its dialects."""

import codecs
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ulid import ULID

from app.errors import as_problem
from serving.ensemble import Uncertainty
from serving.errors import ServingError
from serving.generation import AppliedSet, Event, FinishEvent, PromptEvent, TokenEvent, Usage

Json = dict[str, Any]
Piece = Callable[[int], str]

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode

DONE = "data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # what JSON cannot say, -inf, becomes this (vLLM's number)


@dataclass(slots=True)
class Answer:
    """One choice as it grows, or what one event adds to it.

    `prompt`: its prompt's tokens, if they were scored; `end`: the token that ended it.
    """

    index: int
    text: str = ""
    tokens: list[TokenEvent] = field(default_factory=list)
    reason: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    prompt: Sequence[TokenEvent] = ()
    end: TokenEvent | None = None
    uncertainty: Uncertainty | None = None
    applied: AppliedSet | None = None

    def take(self, event: Event) -> None:
        """Add what an event brings."""
        if isinstance(event, TokenEvent):
            self.text += event.text
            self.tokens.append(event)
        elif isinstance(event, PromptEvent):
            self.prompt = event.tokens
        elif isinstance(event, FinishEvent):
            self.reason, self.usage, self.end = event.reason, event.usage, event.end
            self.uncertainty = event.uncertainty
            self.applied = event.applied


@dataclass(frozen=True, slots=True)
class Shape:
    """What all chunks of one answer have in common. `choices_each`: answers to the same prompt, which counts once.

    `made_with`: the members `adapters` and, for an ensemble, `combine`.
    """

    kind: str
    model: str
    made_with: Json
    choices_each: int
    prefix: str
    id: str = field(default_factory=lambda: str(ULID()))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def adapters(self) -> list[str]:
        """The references of the adapters that it is made with."""
        return [adapter["ref"] for adapter in self.made_with.get("adapters", ())]

    def envelope(self, choices: list[Json], *, kind: str | None = None, **more: Any) -> Json:
        """The outer object around choices."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind or self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **self.made_with,
            **more,
        }

    def frame(self, *, kind: str, **more: Any) -> "Frame":
        """The text of a stream's chunks but for their choice."""
        before, _, after = sse(self.envelope([], kind=kind, **more)).partition('"choices": []')
        return Frame(f'{before}"choices": [', f"]{after}")

    def usage(self, answers: Sequence[Answer]) -> Json:
        """Token counts of all choices; a prompt counts once, as its first choice found it."""
        firsts = [answer.usage for answer in answers[:: self.choices_each]]
        prompt = sum(usage.prompt_tokens for usage in firsts)
        completion = sum(answer.usage.completion_tokens for answer in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
        }


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands in every chunk of a stream, as text once and for all: a chunk costs the encoding of its choice."""

    before: str
    after: str

    def around(self, choice: Json) -> str:
        """One chunk."""
        return f"{self.before}{_ENCODE(choice)}{self.after}"


def set_form(answer: Answer) -> Json:
    """The member `set`, where the engine had to form one adapter of the request's set; all choices share it."""
    return {} if answer.applied is None else {"set": asdict(answer.applied)}


def chat_logprobs(tokens: Sequence[TokenEvent], piece: Piece, spelled: Callable[[int], bytes]) -> Json:
    """Log-probabilities as chat completions show them. `spelled`: a token's bytes, joined they are the text's."""

    def shown(token_id: int, logprob: float | None) -> Json:
        return {"token": piece(token_id), "logprob": _finite(logprob), "bytes": list(spelled(token_id))}

    return {
        "content": [
            {
                **shown(token.token_id, token.logprob),
                "top_logprobs": [shown(token_id, logprob) for token_id, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


class TextOffsets:
    """Where the tokens of one choice begin in its text, in characters: a token that goes on with a character begins
    where that one does, and a token that the text leaves out takes no place."""

    def __init__(self, spelled: Callable[[int], bytes], left_out: Callable[[int], bool]) -> None:
        self._spelled = spelled
        self._left_out = left_out
        self._restart(0)

    def of(self, answer: Answer, echoed: int) -> list[int]:
        """For the tokens of an answer, or of what came next of a streamed one, in which the prompt takes ``echoed``."""
        prompt = [self._place(self._spelled(token.token_id)) for token in answer.prompt]
        if prompt:  # its text may differ from its tokens', which can begin with one for the beginning
            self._restart(echoed)
        ids = [token.token_id for token in answer.tokens]
        places = [self._place(b"" if self._left_out(token) else self._spelled(token)) for token in ids]
        return [*prompt, *places, *([] if answer.end is None else [self._at])]

    def _restart(self, at: int) -> None:
        self._at, self._decoder = at, codecs.getincrementaldecoder("utf-8")("replace")

    def _place(self, spelled: bytes) -> int:
        begin = self._at
        self._at += len(self._decoder.decode(spelled))
        return begin


def text_logprobs(tokens: Sequence[TokenEvent], piece: Piece, offsets: list[int]) -> Json:
    """Log-probabilities as completions show them; the chosen token is always among the top ones, as OpenAI has it.

    A token without a log-probability (the first of a prompt) has null in both lists.
    """
    pieces = [piece(token.token_id) for token in tokens]
    tops: list[dict[str, float | None] | None] = []
    for text, token in zip(pieces, tokens, strict=True):
        top: dict[str, float | None] = {}
        for token_id, logprob in token.top:
            top.setdefault(piece(token_id), _finite(logprob))  # two broken characters may look the same: the likelier
        top.setdefault(text, _finite(token.logprob))
        tops.append(None if token.logprob is None else top)
    return {
        "tokens": pieces,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


async def collect(events: AsyncIterator[tuple[int, Event]], count: int) -> list[Answer]:
    """All answers, whole."""
    answers = [Answer(index) for index in range(count)]
    async for index, event in events:
        answers[index].take(event)
    return answers


def sse(document: Json) -> str:
    """One chunk of a stream."""
    return f"data: {_ENCODE(document)}\n\n"


def sse_error(error: ServingError) -> str:
    """A failure after the stream has begun, as OpenAI's clients recognise it."""
    problem = as_problem(error)
    return sse({"error": {"message": problem["detail"], "code": problem["type"], **problem}})
