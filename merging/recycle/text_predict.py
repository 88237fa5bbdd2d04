"""Few-shot prediction of texts: some with labels, some without, one forward pass, no training. Our extension.

A text is embedded bare, without any instruction: the mean of its tokens' last states, after the token that marks a
beginning (most models pay nearly all attention to the first token, whatever it is; the mark takes it, not a word).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.recycle.predict import check_episode
from merging.recycle.prototypes import Distance, class_log_probabilities, prototypes
from merging.recycle.text_base import TextBase
from merging.recycle.text_network import Heard, TextNetwork
from merging.recycle.updated import Lora

BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class BareTexts:
    """A text base's network on bare texts, as a student of meta-training or to predict with."""

    network: TextNetwork
    start: tuple[int, ...]

    def __call__(
        self,
        inputs: Tensor,
        lora: Lora | None = None,
        /,
        *,
        patches: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Heard:
        """Token embeddings [N, T, D], of which the tokens `patches` [N, K] are seen, or the first `lengths` [N]."""
        beginning = self.network(self.network.table[torch.tensor([self.start])], lora).beginning if self.start else ()
        return self.network(inputs, lora, patches=patches, lengths=lengths, beginning=beginning)


def embed_texts(base: TextBase, texts: Sequence[str], lora: Lora | None = None) -> Tensor:
    """Embeddings [N, D] of texts, float32. Raises BadTexts where one has no tokens."""
    student = BareTexts(base.network, base.start)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # texts of one length need no padding
    found = torch.empty(len(texts), base.width)
    with torch.no_grad():
        for at in range(0, len(texts), BATCH):
            chosen = order[at : at + BATCH]
            inputs, lengths = base.batch([texts[place] for place in chosen])
            found[chosen] = student(inputs, lora, lengths=lengths).embedding.cpu()
    return found


def predict_texts(
    base: TextBase,
    support: Sequence[str],
    labels: Tensor,
    queries: Sequence[str],
    lora: Lora | None = None,
    *,
    distance: Distance = "euclidean",
    temperature: float = 1.0,
) -> Tensor:
    """Class probabilities [Q, ways] of query texts, given support texts with labels [S] from 0 up.

    Raises:
        BadEpisode: if labels and texts do not match, or a class has no support text.
        BadTexts: if a text has no tokens.
    """
    check_episode(len(support), labels, len(queries))
    found = embed_texts(base, [*support, *queries], lora)
    centres = prototypes(found[: len(support)], labels, int(labels.max()) + 1)
    return class_log_probabilities(found[len(support) :], centres, distance, temperature).exp()
