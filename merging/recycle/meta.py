"""Meta-training: one LoRA that, as a prototype classifier, says what every teacher says (LoRA Recycle, arXiv
2412.02220, eq. 3a, 3b, 4 and algorithm 1).

Each iteration draws one task: with probability `interpolation` one that mixes sources' classes (cross entropy with the
labels), otherwise one of a single source (KL to its teacher). Queries may be blended (`mixing.py`, ours). Gradients
flow through queries and prototypes into the factors alone; there are no second-order terms. Adam; the learning rate
goes in cycles, up in a straight line and down along a cosine.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deltas.factors import Factors
from merging.recycle.mixing import mixed, wanted
from merging.recycle.params import MetaParams
from merging.recycle.prototypes import class_log_probabilities, divergence, prototypes
from merging.recycle.randomness import chance, generator
from merging.recycle.surrogates import Pool, Task
from merging.recycle.updated import Lora


class Embedded(Protocol):
    """What a network made of inputs; of it meta-training needs embeddings [N, D]."""

    @property
    def embedding(self) -> Tensor: ...


class Network(Protocol):
    """A network that embeds inputs with a LoRA given by value: of images (`vit.py`) or of texts (`text_network.py`)."""

    def __call__(self, inputs: Tensor, lora: Lora | None = None, /, *, patches: Tensor | None = None) -> Embedded: ...


class MetaStep(NamedTuple):
    """One iteration: its number from 1, its loss, whether the task was interpolated, and the share of queries that were
    put into the class that they were made for."""

    iteration: int
    loss: float
    interpolated: bool
    accuracy: float


class MetaTraining:
    """The adapter on its way: factors that are trained in place, their optimiser, iterations done."""

    def __init__(self, lora: dict[str, Factors]) -> None:
        self.lora = lora
        self.weights = [side for _, factors in sorted(lora.items()) for side in (factors.A, factors.B)]
        self.optimiser = torch.optim.Adam(self.weights)
        self.iteration = 0


def learning_rate(iteration: int, params: MetaParams) -> float:
    """Of iteration 0, 1, …: linear from low to high over the warm-up, half a cosine back; repeated without decay."""
    place = iteration % params.cycle
    span = params.high_rate - params.low_rate
    if place < params.warmup:
        return params.low_rate + span * place / params.warmup
    down = (place - params.warmup) / (params.cycle - params.warmup)
    return params.low_rate + span * (1 + math.cos(math.pi * down)) / 2


def train(
    state: MetaTraining,
    network: Network,
    pool: Pool,
    params: MetaParams,
    seed: int,
    on_step: Callable[[MetaStep], None] = lambda step: None,
) -> None:
    """Run `state` to its last iteration.

    `on_step` is called after each; what it raises ends the run, and `state` can go on later, to the same bytes.
    """
    while state.iteration < params.iterations:
        rng = generator(seed, "meta", state.iteration)
        if chance(params.interpolation, rng):
            task = pool.interpolated_task(params.ways, params.shots, params.queries, rng, distinct=params.distinct)
        else:
            task = pool.taught_task(params.shots, params.queries, rng)
        asked = wanted(task)
        if params.mixed:
            task, asked = mixed(task, asked, params.mixed, rng)
        found = classify(network, state.lora, task, params)
        labels = task.labels[task.supports :]
        if task.teacher is None:
            loss = -(asked.exp() * found).sum(1).mean()
        else:
            loss = divergence(found, asked, params.divergence)
        state.optimiser.param_groups[0]["lr"] = learning_rate(state.iteration, params)
        for weight, slope in zip(state.weights, torch.autograd.grad(loss, state.weights), strict=True):
            weight.grad = slope
        state.optimiser.step()
        state.iteration += 1
        right = float((found.argmax(1) == labels).float().mean())
        on_step(MetaStep(state.iteration, loss.item(), task.teacher is None, right))


def classify(network: Network, lora: Lora, task: Task, params: MetaParams) -> Tensor:
    """The prototype classifier's log-probabilities [queries, ways], in one pass over support and queries together."""
    seen = network(task.inputs, lora, patches=task.patches).embedding
    centres = prototypes(seen[: task.supports], task.labels[: task.supports], task.ways)
    return class_log_probabilities(seen[task.supports :], centres, params.distance, params.temperature)
