"""What is compared: ways to make one adapter, or none, out of all sources, and a prototype classifier on top.

| name | what |
| --- | --- |
| base | the bare base |
| average | A and B averaged apart ("LoRAs Avg" in the paper) |
| sum, lego, … | Spolia's merge methods at the sources' rank, each source at weight 1 / sources |
| recycle-M | LoRA Recycle with M % of the patches masked in meta-training |
| tuned | a LoRA of rank 4 and a linear head trained on each task's support set (50 Adam steps at 1e-3) |
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltas.adapter import Adapter
from deltas.factors import Factors
from merging.engine import run_merge
from merging.planning import plan_merge
from merging.recipe import Recipe
from merging.recycle.evaluate import Accuracy, summary
from merging.recycle.lora import averaged, new_lora, read_lora, write_lora
from merging.recycle.params import BENCHMARK, RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.recycle import Progress, distil
from merging.recycle.source import Head, Source
from merging.recycle.statistics import Moments
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase

MERGES = ("sum", "lego", "ties")
MASKS = (0, 25, 50, 75)
STEPS, RATE = 50, 1e-3  # of "tuned", as in the paper's table 1


def candidates(masks: Sequence[int] = MASKS) -> list[str]:
    """All names, the cheap ones first."""
    return ["base", "average", *MERGES, *(f"recycle-{mask}" for mask in masks)]


def make(
    name: str,
    base: VisionBase,
    sources: Sequence[Source],
    params: RecycleParams,
    folder: Path,
    log: Callable[[str], None],
) -> Lora | None:
    """The adapter of that name; None for the bare base."""
    if name == "base":
        return None
    if name == "average":
        return averaged([source.lora for source in sources])
    if name in MERGES:
        return _merged(name, base, sources, folder / "merging")
    mask = int(name.removeprefix("recycle-")) / 100
    # One inversion serves all masks: tokens are not pruned in it, and the last block says which patches to see.
    inversion = params.inversion.model_copy(update={"prune": {}, "mask": {-1: mask} if mask else {}})
    for made in folder.glob("recycle-*/*.safetensors"):  # by another mask; what does not fit is not taken over
        if made.name.startswith(("inversion", "statistics")) and not (folder / name / made.name).exists():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / made.name).hardlink_to(made)
    return distilled(name, base, sources, params.model_copy(update={"inversion": inversion}), folder / name, log)[0]


def profile(px: int, seed: int) -> RecycleParams:
    """The benchmark's choices at this size, in bfloat16, nothing pruned in inversion."""
    inversion = BENCHMARK.inversion.model_copy(update={"prune": {}})
    update = {"image_px": px, "seed": seed, "precision": "bfloat16", "inversion": inversion}
    return BENCHMARK.model_copy(update=update)


def distilled(
    name: str,
    base: VisionBase,
    sources: Sequence[Source],
    params: RecycleParams,
    place: Path,
    log: Callable[[str], None],
    moments: Moments | None = None,
) -> tuple[Lora, dict[str, Any]]:
    """A distillation in the folder `place`, or what is left of it to do: the adapter and its report."""
    place.mkdir(parents=True, exist_ok=True)
    last = [""]

    def report(progress: Progress) -> None:
        if progress.phase != last[0] or progress.done % 20 == 0:
            last[0] = progress.phase
            log(f"{name}: {progress.phase} {progress.done}/{progress.total} {dict(progress.losses)}")

    result = distil(base, sources, params, place, moments=moments, on_progress=report)
    (place / f"report-{name}.json").write_text(json.dumps(result.report))
    (place / "adapter_config.json").write_text(json.dumps(result.config))
    return read_lora(name, Adapter.open(place / "adapter_config.json", result.weights), base), result.report


def _merged(method: str, base: VisionBase, sources: Sequence[Source], folder: Path) -> Lora:
    """One of the merge methods on the sources without their heads, which no merge can unite."""
    shutil.rmtree(folder, ignore_errors=True)
    adapters = []
    for number, source in enumerate(sources):
        place = folder / str(number)
        config = write_lora(source.lora, base.name, ("q_proj", "v_proj"), place)
        adapters.append(Adapter.open(config, place / "adapter_model.safetensors"))
    recipe = Recipe.model_validate(
        {
            "sources": [{"ref": source.ref, "weight": 1 / len(sources)} for source in sources],
            "method": method,
            "rank": next(iter(sources[0].lora.values())).rank,
        }
    )
    result = run_merge(plan_merge(recipe, adapters, base.modules), folder / "out")
    return read_lora(method, Adapter.open(result.config, result.weights), base)


def tuned_accuracy(
    base: VisionBase, images: Tensor, labels: Tensor, *, ways: int, shots: int, queries: int, episodes: int, seed: int
) -> Accuracy:
    """A LoRA with a linear head trained on each task's support set: "LoRA + Linear" in the paper's tables."""
    classes = [int(c) for c, n in zip(*torch.unique(labels, return_counts=True), strict=True) if n >= shots + queries]
    members = {c: (labels == c).nonzero().flatten() for c in classes}
    shares = []
    for episode in range(episodes):
        rng = generator(seed, "tuned", shots, episode)
        chosen = [classes[i] for i in torch.randperm(len(classes), generator=rng)[:ways].tolist()]
        drawn = [members[c][torch.randperm(len(members[c]), generator=rng)[: shots + queries]] for c in chosen]
        support, asked = (torch.cat([d[part] for d in drawn]) for part in (slice(shots), slice(shots, None)))
        support_labels = torch.arange(ways).repeat_interleave(shots)
        lora, head = _tune(base, images[support], support_labels, ways, rng)
        with torch.no_grad():
            found = head.logits(base.network(images[asked], lora)).argmax(1)
        shares.append(float((found == torch.arange(ways).repeat_interleave(queries)).float().mean()))
    return summary(shares)


def _tune(
    base: VisionBase, images: Tensor, labels: Tensor, ways: int, rng: torch.Generator
) -> tuple[dict[str, Factors], Head]:
    lora = new_lora(base, ("q_proj", "v_proj"), 4, rng)
    head = Head(torch.zeros(ways, base.width, requires_grad=True), torch.zeros(ways, requires_grad=True))
    weights = [side for f in lora.values() for side in (f.A, f.B)] + [head.weight, head.bias]
    optimiser = torch.optim.Adam(weights, lr=RATE)
    for _ in range(STEPS):
        loss = F.cross_entropy(head.logits(base.network(images, lora)), labels)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        optimiser.step()
    return lora, head
