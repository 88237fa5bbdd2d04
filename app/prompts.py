"""Prompts as the base model reads them: text and conversations to token ids, and single tokens back to text."""

import threading
from collections.abc import Sequence
from typing import Any

from app.problems import Refusal
from app.schemas_openai import Message


class Prompts:
    """Text to token ids. One thread at a time: a tokenizer is not made for several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation through the base model's chat template, up to where the assistant speaks next."""
        if not self._tokenizer.chat_template:
            raise Refusal(422, "no-chat-template", "The base model has no chat template; use /v1/completions.")
        turns = [
            {"role": "system" if turn.role == "developer" else turn.role, "content": turn.text} for turn in messages
        ]
        with self._lock:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, text: str) -> tuple[int, ...]:
        """A plain prompt, with the special tokens that the tokenizer puts before a text."""
        with self._lock:
            return tuple(self._tokenizer.encode(text))

    def piece(self, token_id: int) -> str:
        """One token as text, for log-probabilities."""
        with self._lock:
            return str(self._tokenizer.decode([token_id]))
