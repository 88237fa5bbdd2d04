"""How good an adapter is at few-shot tasks: mean accuracy over many random ones, with its 95 % interval.

As in LoRA Recycle (arXiv 2412.02220, sec. 5): 600 tasks of unseen classes, 1.96 · s / √n. Every image is embedded once;
a task is then a matter of distances.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from merging.recycle.errors import BadEpisode
from merging.recycle.prototypes import Distance, class_log_probabilities, prototypes
from merging.recycle.updated import Lora
from merging.recycle.vit import VisionTransformer

EPISODES = 600
BATCH = 64


class Accuracy(NamedTuple):
    """Mean share of queries that were right over `episodes` tasks, and half the width of its 95 % interval."""

    mean: float
    interval: float
    episodes: int


def embed(network: VisionTransformer, images: Tensor, lora: Lora | None = None) -> Tensor:
    """Embeddings [N, D] of normalised images, all their patches seen."""
    with torch.no_grad():
        return torch.cat([network(part, lora).embedding for part in torch.split(images, BATCH)])


def few_shot_accuracy(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = EPISODES,
    distance: Distance = "euclidean",
    rng: torch.Generator,
) -> Accuracy:
    """Nearest-prototype accuracy on tasks drawn from labelled embeddings [N, D].

    Raises:
        BadEpisode: if fewer than `ways` classes have shots + queries images.
    """
    classes = torch.unique(labels, return_counts=True)
    enough = [int(c) for c, n in zip(*classes, strict=True) if int(n) >= shots + queries]
    if len(enough) < ways:
        needed = f"{ways} classes with {shots + queries} images each"
        raise BadEpisode(f"such tasks need at least {needed}, found {len(enough)}")
    members = {c: (labels == c).nonzero().flatten() for c in enough}
    support_labels = torch.arange(ways).repeat_interleave(shots)
    query_labels = torch.arange(ways).repeat_interleave(queries)
    shares = []
    for _ in range(episodes):
        chosen = [enough[i] for i in torch.randperm(len(enough), generator=rng)[:ways].tolist()]
        drawn = [members[c][torch.randperm(len(members[c]), generator=rng)[: shots + queries]] for c in chosen]
        centres = prototypes(embeddings[torch.cat([d[:shots] for d in drawn])], support_labels, ways)
        found = class_log_probabilities(embeddings[torch.cat([d[shots:] for d in drawn])], centres, distance)
        shares.append(float((found.argmax(1) == query_labels).float().mean()))
    return summary(shares)


def summary(shares: list[float]) -> Accuracy:
    """The mean of tasks' accuracies with 1.96 · s / √n (s with n − 1; 0 for a single task)."""
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / max(1, len(shares) - 1))
    return Accuracy(mean, 1.96 * spread / math.sqrt(len(shares)), len(shares))
