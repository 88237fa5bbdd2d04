"""What is fitted to each task's support set, and so takes seconds where the others take one forward pass.

lorahub  LoraHub (arXiv 2307.13269): one weight for each source, the factors weighted and summed apart
         (A = Σ wᵢ Aᵢ, B = Σ wᵢ Bᵢ), found without gradients: 40 evaluations from w = 0, |wᵢ| ≤ 1.5, the loss plus
         0.05 · mean |w|, as there. Its search (nevergrad's NGOpt) is replaced by a (1+1) evolution strategy with the
         one-fifth rule. One image a class leaves nothing to test on, so the loss is that of the mirrored support
         images under the prototypes of the support set (ours). Then prototypes, as for everybody.
tuned    a LoRA of rank 4 and a linear head: 50 Adam steps at 1e-3 ("LoRA + Linear" in LoRA Recycle, table 1).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deltas.factors import Factors
from merging.recycle.evaluate import Accuracy, summary
from merging.recycle.lora import new_lora
from merging.recycle.prototypes import class_log_probabilities, prototypes
from merging.recycle.randomness import generator
from merging.recycle.source import Head
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase
from merging.recycle.vit import VisionTransformer

EVALUATIONS, BOUND, PENALTY, SPREAD = 40, 1.5, 0.05, 0.2
STEPS, RATE = 50, 1e-3

Solver = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""(support images, their labels, query images, randomness) -> the queries' classes"""


def fitted_accuracy(
    name: str, solve: Solver, images: Tensor, labels: Tensor, *, ways: int, shots: int, queries: int, episodes: int,
    seed: int,
) -> Accuracy:  # fmt: skip
    """Mean accuracy of a solver over tasks drawn from labelled images."""
    classes = [int(c) for c, n in zip(*torch.unique(labels, return_counts=True), strict=True) if n >= shots + queries]
    members = {c: (labels == c).nonzero().flatten() for c in classes}
    truth = torch.arange(ways).repeat_interleave(queries)
    shares = []
    for episode in range(episodes):
        rng = generator(seed, name, shots, episode)
        chosen = [classes[i] for i in torch.randperm(len(classes), generator=rng)[:ways].tolist()]
        drawn = [members[c][torch.randperm(len(members[c]), generator=rng)[: shots + queries]] for c in chosen]
        support, asked = (torch.cat([d[part] for d in drawn]) for part in (slice(shots), slice(shots, None)))
        found = solve(images[support], torch.arange(ways).repeat_interleave(shots), images[asked], rng)
        shares.append(float((found == truth).float().mean()))
    return summary(shares)


def voted(support: Tensor, labels: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
    """What the mean of all members' probabilities says; embeddings [N, members, D] instead of images."""
    ways = int(labels.max()) + 1
    members = zip(support.unbind(1), asked.unbind(1), strict=True)
    said = [class_log_probabilities(own, prototypes(known, labels, ways)).exp() for known, own in members]
    return torch.stack(said).mean(0).argmax(1)


def lorahub(network: VisionTransformer, loras: Sequence[Lora]) -> Solver:
    """Weights searched on the support set, then the nearest prototype."""
    names = sorted(loras[0])
    sides = {n: [torch.stack([getattr(lora[n], side) for lora in loras]) for side in ("A", "B")] for n in names}

    def summed(weights: Tensor) -> Lora:
        return {n: Factors(*(torch.einsum("s,sij->ij", weights, side) for side in sides[n])) for n in names}

    def answers(lora: Lora, support: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        with torch.no_grad():
            seen = network(torch.cat([support, asked]), lora).embedding
        centres = prototypes(seen[: len(support)], labels, int(labels.max()) + 1)
        return class_log_probabilities(seen[len(support) :], centres)

    def solve(support: Tensor, labels: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        def loss(weights: Tensor) -> float:
            found = answers(summed(weights), support, labels, support.flip(3))
            return float(F.nll_loss(found, labels) + PENALTY * weights.abs().mean())

        best, spread = torch.zeros(len(loras)), SPREAD
        lowest = loss(best)
        for _ in range(EVALUATIONS - 1):
            other = (best + spread * torch.randn(len(loras), generator=rng)).clamp(-BOUND, BOUND)
            if (own := loss(other)) < lowest:
                best, lowest, spread = other, own, spread * 1.5
            else:
                spread *= 1.5**-0.25
        return answers(summed(best), support, labels, asked).argmax(1)

    return solve


def tuned(base: VisionBase, network: VisionTransformer) -> Solver:
    """A LoRA and a linear head trained on the support set."""

    def solve(support: Tensor, labels: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        ways = int(labels.max()) + 1
        lora = new_lora(base, ("q_proj", "v_proj"), 4, rng)
        head = Head(torch.zeros(ways, base.width, requires_grad=True), torch.zeros(ways, requires_grad=True))
        weights = [side for f in lora.values() for side in (f.A, f.B)] + [head.weight, head.bias]
        optimiser = torch.optim.Adam(weights, lr=RATE)
        for _ in range(STEPS):
            loss = F.cross_entropy(head.logits(network(support, lora)), labels)
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = slope
            optimiser.step()
        with torch.no_grad():
            return head.logits(network(asked, lora)).argmax(1)

    return solve
