"""Few-shot prediction: some labelled images, some without labels, one forward pass, no training."""

import torch
from torch import Tensor

from merging.recycle.errors import BadEpisode
from merging.recycle.prototypes import Distance, class_log_probabilities, prototypes
from merging.recycle.updated import Lora
from merging.recycle.vit import VisionTransformer


def predict(
    network: VisionTransformer,
    support: Tensor,
    labels: Tensor,
    queries: Tensor,
    lora: Lora | None = None,
    *,
    distance: Distance = "euclidean",
    temperature: float = 1.0,
) -> Tensor:
    """Class probabilities [Q, ways] of normalised query images, given support images with labels [S] from 0 up.

    Support and queries of one size go through the network together.

    Raises:
        BadEpisode: if labels and images do not match, or a class has no support image.
        BadImages: if images are of a form that the network does not take.
    """
    check_episode(len(support), labels, len(queries))
    with torch.no_grad():
        if support.shape[1:] == queries.shape[1:]:
            found = network(torch.cat([support, queries]), lora).embedding
            known, asked = found[: len(support)], found[len(support) :]
        else:
            known, asked = network(support, lora).embedding, network(queries, lora).embedding
        centres = prototypes(known, labels, int(labels.max()) + 1)
        return class_log_probabilities(asked, centres, distance, temperature).exp()


def check_episode(supports: int, labels: Tensor, queries: int) -> None:
    """Raises BadEpisode where counts and labels make no task."""
    if len(labels) != supports or not queries:
        counted = f"{supports} support examples with {len(labels)} labels, and {queries} queries"
        raise BadEpisode(f"every support example needs one label, and there must be a query; found {counted}")
    if not len(labels) or int(labels.min()) < 0:
        raise BadEpisode("labels must count the classes from 0, and there must be one")
