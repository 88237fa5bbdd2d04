"""Tokens to text, piece by piece, so that what was streamed is never taken back.

Text is held while it ends in an incomplete UTF-8 sequence, and while it could still become a stop string. Decoding
looks
back over the last few tokens, because many tokenizers spell a token differently at the start of a text.
"""

from collections.abc import Sequence
from typing import Any

_LOOK_BACK = 4  # tokens of the prompt that give the first token its left neighbour
_INCOMPLETE = "\ufffd"  # what tokenizers decode broken UTF-8 to


class Detokenizer:
    """Incremental decoding after the method of text-generation-inference: decode a window with and without the new
    tokens, and release the difference once it ends in whole characters."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_LOOK_BACK:])
        self._known = self._decode()
        if self._known.endswith(_INCOMPLETE):
            self._ids, self._known = [], ""
        self._done = len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._known):
            return ""
        fresh = text[len(self._known) :]
        self._ids = self._ids[self._done :]
        self._done, self._known = len(self._ids), self._decode()
        return fresh

    def end(self) -> str:
        """What is still held, without a broken last character."""
        return self._decode()[len(self._known) :].rstrip(_INCOMPLETE)

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))


class StopStrings:
    """Watches a stream of text for the first of several strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was reached). The stop string itself is never shown."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def end(self) -> str:
        """What was held in case a stop string would follow."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
