"""Requests as vLLM's /v1/completions takes them, and its stream as events.

vLLM 0.32: `return_token_ids` adds the ids of each chunk's tokens, `return_tokens_as_token_ids` spells the tokens of
log-probabilities as "token_id:N", `echo` puts the prompt's log-probabilities before those of the first chunk. All
sampling fields are always sent: what is left out, vLLM would fill from the model's generation_config.json.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.errors import ServerRefused
from serving.generation import FinishReason, Generation, PromptEvent, TokenEvent
from serving.sampling import Sampling

Json = dict[str, Any]
_ID = "token_id:"


def completion_body(model: str, generation: Generation, limit: int) -> Json:
    """The JSON that asks a server for this generation. `model`: the served name; `limit`: most tokens."""
    return {
        "model": model,
        "prompt": list(generation.prompt_ids),
        "max_tokens": limit,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": True,
        **_sampling_fields(generation.sampling),
        **_constraint_fields(generation.sampling),
    }


def _sampling_fields(sampling: Sampling) -> Json:
    tops = [top for top in (sampling.logprobs, sampling.prompt_logprobs) if top is not None]
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "seed": None if sampling.seed is None else _signed(sampling.seed),
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "min_tokens": sampling.min_tokens,
        "logprobs": max(tops, default=None),
        "echo": sampling.prompt_logprobs is not None,
    }


def _constraint_fields(sampling: Sampling) -> Json:
    """What the answer must be; without free whitespace, in which a small model would go on for ever."""
    constraint = sampling.constraint
    if constraint is None:
        return {}
    if constraint.kind == "regex":
        return {"structured_outputs": {"regex": constraint.source}}
    return {"structured_outputs": {"json": constraint.source, "disable_any_whitespace": True}}


class Stream:
    """Turns the chunks of one answer into events, which `tell` gets; `produced` tokens so far, `cached_tokens` of the
    prompt (where the server tells), the `reason` and the `end` token once it is over."""

    def __init__(self, generation: Generation, tell: Callable[[TokenEvent | PromptEvent], None]) -> None:
        self.produced = self.cached_tokens = 0
        self.reason: FinishReason | None = None
        self.end: TokenEvent | None = None
        self._prompt, self._sampling, self._tell = generation.prompt_ids, generation.sampling, tell
        self._prompt_is_due = self._sampling.prompt_logprobs is not None
        self._pending: list[TokenEvent] = []  # tokens whose text is still to come

    def take(self, chunk: Mapping[str, Any]) -> None:
        """One chunk. Raises ServerRefused if it is an error that vLLM met on the way."""
        if "error" in chunk:
            raise ServerRefused(str(dict(chunk["error"] or {}).get("message", "no reason given")))
        details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens") or self.cached_tokens
        for choice in chunk.get("choices", ()):
            self._take_choice(choice)

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        scores = choice.get("logprobs") or {}
        first = 0
        if self._prompt_is_due:
            first, self._prompt_is_due = len(self._prompt), False
            tops = self._sampling.prompt_logprobs
            prompt = [TokenEvent("", token, *_scores(scores, at, tops)) for at, token in enumerate(self._prompt)]
            self._tell(PromptEvent(tuple(prompt)))
        tops = self._sampling.logprobs
        # Asked for no token, vLLM still makes one, and does not score it.
        ids: Sequence[int] = () if self._sampling.max_tokens == 0 else choice.get("token_ids") or ()
        tokens = [TokenEvent("", token, *_scores(scores, first + at, tops)) for at, token in enumerate(ids)]
        self.produced += len(tokens)
        ended = choice.get("finish_reason")
        # The token that ends a text is no part of it. What vLLM gives as the reason is that token or, for the model's
        # main one, nothing; a string is a stop string.
        if ended == "stop" and tokens and not isinstance(choice.get("stop_reason"), str):
            self.end = tokens.pop()
        self._pending += tokens
        self._report(choice.get("text") or "", over=ended is not None)
        if ended is not None:
            self.reason = "length" if ended == "length" else "stop"

    def _report(self, text: str, *, over: bool) -> None:
        """Tokens are told with the text that they complete.

        With stop strings vLLM keeps text back; then the last token is kept back too, to carry what is left.
        """
        ready = len(self._pending) if over or not self._sampling.stop else len(self._pending) - 1
        if ready < 1 or not (text or over):
            if text:  # without a token it would be lost: let that fail
                self._pending[-1] = _with_text(self._pending[-1], text)
            return
        shown, self._pending = self._pending[:ready], self._pending[ready:]
        for event in shown[:-1]:
            self._tell(event)
        self._tell(_with_text(shown[-1], text))


def _with_text(event: TokenEvent, text: str) -> TokenEvent:
    return TokenEvent(event.text + text, event.token_id, event.logprob, event.top)


def _scores(scores: Mapping[str, Any], at: int, tops: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """The log-probability of token `at` and the likeliest ones; vLLM adds the chosen token to these."""
    if tops is None or scores["top_logprobs"][at] is None:
        return None, ()
    found = sorted(scores["top_logprobs"][at].items(), key=lambda pair: -pair[1])[:tops]
    return scores["token_logprobs"][at], tuple((int(text.removeprefix(_ID)), value) for text, value in found)


def _signed(seed: int) -> int:
    """vLLM takes seeds as signed 64-bit integers; those above wrap round."""
    return seed - 2**64 if seed >= 2**63 else seed
