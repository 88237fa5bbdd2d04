"""Prompts as the base model reads them: text and conversations to token ids, and single tokens back to text."""

import inspect
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.problems import Refusal
from app.schemas_openai import Message

# What the tokenizer itself takes beside the template's own variables; a request decides none of it.
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
_BROKEN = "\ufffd"  # what tokenizers decode a part of a character to
_ONE_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte's token where tokens are text otherwise
_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


class Prompts:
    """Text to token ids. One thread at a time: a tokenizer is not made for several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._pieces: dict[int, str] = {}
        self._special = frozenset(tokenizer.all_special_ids)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        opened: bool = True,
        continued: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """A conversation through the base model's chat template.

        `opened`: up to where the assistant speaks next. `continued`: up to the end of the last message's text.
        `variables`: what else the template is given.

        Raises:
            Refusal: there is no template, or it cannot be filled with this.
        """
        if not self._tokenizer.chat_template:
            raise Refusal(422, "no-chat-template", "The base model has no chat template; use /v1/completions.")
        if reserved := sorted(_RESERVED & set(variables or ())):
            detail = f"chat_template_kwargs cannot hold {reserved[0]}: it is not a variable of the template."
            raise Refusal(422, "invalid-request", detail, field="chat_template_kwargs")
        turns = [
            {"role": "system" if turn.role == "developer" else turn.role, "content": turn.text} for turn in messages
        ]
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=opened,
                    continue_final_message=continued,
                    **(variables or {}),
                )
                return tuple(self._tokenizer.encode(text, add_special_tokens=False))
        except (TemplateError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            detail = f"The base model's chat template cannot be filled with this conversation: {reason}."
            raise Refusal(422, "chat-template", detail, field="messages") from error

    def text(self, text: str) -> tuple[int, ...]:
        """A plain prompt, with the special tokens that the tokenizer puts before a text."""
        with self._lock:
            return tuple(self._tokenizer.encode(text))

    def shown(self, ids: Sequence[int]) -> str:
        """A prompt that was given as token ids, as text."""
        with self._lock:
            return str(self._tokenizer.decode(ids))

    def piece(self, token_id: int) -> str:
        """One token as text, for log-probabilities."""
        known = self._pieces.get(token_id)
        if known is None:
            with self._lock:
                known = self._pieces[token_id] = str(self._tokenizer.decode([token_id]))
        return known

    def left_out(self, token_id: int) -> bool:
        """Whether the text of an answer leaves this token out."""
        return token_id in self._special

    def spelled(self, token_id: int) -> bytes:
        """The bytes of one token; of some tokens they are a part of a character, which `piece` cannot show."""
        text = self.piece(token_id)
        if _BROKEN not in text:
            return text.encode()
        with self._lock:
            token = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if one := _ONE_BYTE.fullmatch(token):
            return bytes([int(one[1], 16)])
        if all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        return text.encode()
