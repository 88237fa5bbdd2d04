"""The prototype classifier, and how far it is from a teacher (LoRA Recycle, arXiv 2412.02220, eq. 3a and 3b).

c_i = mean of the support embeddings of class i
P(y = i | x) = softmax_i( −dist(f(x), c_i) / temperature )

The paper's distance is Euclidean and not squared, its divergence KL(student ‖ teacher); the released code squares the
one and turns the other round. Both are options. Embeddings are not normalised.
"""

from typing import Literal

import torch
from torch import Tensor

from merging.recycle.errors import BadEpisode

Distance = Literal["euclidean", "squared"]
Divergence = Literal["student_teacher", "teacher_student"]


def prototypes(support: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Class means [ways, D] of support embeddings [S, D] with labels [S] from 0 to ways − 1.

    Raises:
        BadEpisode: if a class has no support.
    """
    counts = torch.bincount(labels, minlength=ways)
    if len(counts) != ways or not bool(counts.all()):
        raise BadEpisode(f"each of the {ways} classes needs at least one support example, found {counts.tolist()}")
    sums = torch.zeros(ways, support.shape[1], dtype=support.dtype, device=support.device)
    return sums.index_add(0, labels, support) / counts[:, None]


def class_log_probabilities(
    queries: Tensor, centres: Tensor, distance: Distance = "euclidean", temperature: float = 1.0
) -> Tensor:
    """log P [Q, ways] of query embeddings [Q, D] given class means [ways, D]."""
    far = torch.cdist(queries, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return (-(far.square() if distance == "squared" else far) / temperature).log_softmax(1)


def divergence(student: Tensor, teacher: Tensor, order: Divergence = "student_teacher") -> Tensor:
    """KL of log-probabilities [Q, ways], averaged over queries: a scalar."""
    left, right = (student, teacher) if order == "student_teacher" else (teacher, student)
    return (left.exp() * (left - right)).sum(1).mean()
