"""What a request must satisfy before any engine takes it."""

from collections.abc import Iterable, Sequence

from serving.base_model import BaseInfo
from serving.errors import EmptyPrompt, PromptTooLong, TokenOutOfRange


def check_prompt(prompt_ids: Sequence[int], base: BaseInfo, *, answered: bool = True) -> None:
    """Refuse a prompt that base model `base` cannot continue, or read where nothing shall be `answered`.

    Raises EmptyPrompt, PromptTooLong, TokenOutOfRange.
    """
    if not prompt_ids:
        raise EmptyPrompt
    if len(prompt_ids) + answered > base.context_length:
        raise PromptTooLong(len(prompt_ids), base.context_length, answered=answered)
    check_tokens("prompt_ids", prompt_ids, base.vocabulary)


def check_tokens(field: str, tokens: Iterable[int], vocabulary: int) -> None:
    """Raises TokenOutOfRange, naming the request's `field`, at the first token beyond the vocabulary."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise TokenOutOfRange(field, token, vocabulary)
