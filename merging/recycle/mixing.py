"""Queries that are harder than surrogates are: each is blended with another query of its task (ours, not the paper's).

x̃ = (1 − λ) x + λ x′ with λ from 0 to `share`, evenly, as in mixup (arXiv 1710.09412), and what the student shall say
is blended alike. A surrogate is what its source is surest of, and tasks made of such inputs are soon solved; a blend is
of two classes, and each has to be told by what is left of it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.recycle.surrogates import Task


def wanted(task: Task) -> Tensor:
    """What the student shall say of the queries, as log-probabilities [queries, ways]: what the teacher says, in an
    interpolated task the classes that they were made for."""
    if task.teacher is not None:
        return task.teacher
    return F.one_hot(task.labels[task.supports :], task.ways).float().log()


def mixed(task: Task, asked: Tensor, share: float, rng: torch.Generator) -> tuple[Task, Tensor]:
    """The task with blended queries, each seen at its own patches, and what is `asked` of the student, blended alike.

    `share`: the most that the other query counts, up to a half.
    """
    queries = task.inputs[task.supports :]
    other = torch.randperm(len(queries), generator=rng)
    part = share * torch.rand(len(queries), 1, generator=rng)
    blended = torch.lerp(queries, queries[other], part.view(-1, *[1] * (queries.dim() - 1)).to(queries.dtype))
    inputs = torch.cat([task.inputs[: task.supports], blended])
    return task._replace(inputs=inputs), torch.logaddexp((1 - part).log() + asked, part.log() + asked[other])
