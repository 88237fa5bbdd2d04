"""LoRAX's answers: whole, as events of a stream, and its errors."""

from typing import Any

from app.openai_answers import Answer, Piece
from serving.generation import TokenEvent

Json = dict[str, Any]
LORAX = frozenset({"/", "/generate", "/generate_stream"})


def error_type(status: int) -> str:
    """What LoRAX's client makes its exception of."""
    return {429: "overloaded", 503: "overloaded"}.get(status, "validation" if status < 500 else "generation")


def token_json(token: TokenEvent, piece: Piece, special: frozenset[int], alternatives: int | None) -> Json:
    """One generated token."""
    document: Json = {
        "id": token.token_id,
        "text": token.text or (piece(token.token_id) if token.token_id in special else ""),
        "logprob": token.logprob,
        "special": token.token_id in special,
        "skipped": False,
    }
    if alternatives:
        document["alternative_tokens"] = [
            {"id": token_id, "text": piece(token_id), "logprob": logprob} for token_id, logprob in token.top
        ]
    return document


def finish_reason(answer: Answer) -> str:
    """Why a text ended, in LoRAX's words."""
    if answer.reason == "length":
        return "length"
    return "stop_sequence" if answer.end is None else "eos_token"


def sequence_json(answer: Answer, tokens: list[Json], prefill: list[Json], seed: int | None) -> Json:
    """What `details` and each of `best_of_sequences` hold of one answer."""
    return {
        "finish_reason": finish_reason(answer),
        "generated_tokens": answer.usage.completion_tokens,
        "seed": seed,
        "prefill": prefill,
        "tokens": tokens,
    }


def mean_logprob(answer: Answer) -> float:
    """What `best_of` chooses by: the mean log-probability of an answer's tokens."""
    tokens = [*answer.tokens, *([answer.end] if answer.end is not None else [])]
    known = [token.logprob for token in tokens if token.logprob is not None]
    return sum(known) / len(known) if known else float("-inf")
