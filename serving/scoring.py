"""Log-probabilities of a prompt's own tokens, from its prefill.

The decoder's last hidden states [rows, tokens, hidden] are small; logits of all positions [rows, tokens, vocabulary]
are not (2000 tokens of a vocabulary of 49152: 400 MB). So the prefill keeps the hidden states, and what the model does
after its decoder (the output layer, and whatever scaling or capping an architecture adds) runs over them in blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from serving.sampling import TokenChoice, measured

_BLOCK_LOGITS = 1 << 24  # logits in memory at once: 64 MB in float32


class PromptScorer:
    """The part of a causal language model behind its decoder, run on its own."""

    def __init__(self, model: Any) -> None:
        self._model, self._decoder = model, model.base_model
        self._vocabulary = int(model.get_output_embeddings().out_features)

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """Collects the last hidden states [rows, tokens, hidden] of every pass within."""
        heard: list[Tensor] = []

        def keep(module: Any, args: Any, output: BaseModelOutputWithPast) -> None:
            assert output.last_hidden_state is not None
            heard.append(output.last_hidden_state)

        handle = self._decoder.register_forward_hook(keep)
        try:
            yield heard
        finally:
            handle.remove()

    def score(self, hidden: Tensor, following: Sequence[Sequence[int]], tops: Sequence[int]) -> list[list[TokenChoice]]:
        """For hidden states [rows, tokens, hidden] how likely the tokens were that follow each position.

        `following[row]` holds, from the first position on, the next token; it may be shorter than the hidden states.
        `tops[row]`: how many of the most likely tokens to tell.
        """
        found: list[list[TokenChoice]] = [[] for _ in following]
        longest = max(map(len, following))
        block = max(1, _BLOCK_LOGITS // (len(following) * self._vocabulary))
        for start in range(0, longest, block):
            logits = self._logits(hidden[:, start : min(start + block, longest)])
            for at, (tokens, top) in enumerate(zip(following, tops, strict=True)):
                part = tokens[start : start + block]
                if part:
                    found[at] += measured(logits[at, : len(part)], part, top)
        return found

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, tokens, vocabulary] of these hidden states: the model's forward with its decoder left out."""
        self._decoder.forward = lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=hidden)
        try:
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits
