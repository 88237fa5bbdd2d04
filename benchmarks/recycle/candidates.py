"""What is compared: ways to make one adapter, or none, out of all sources, and a prototype classifier on top.

| name | what |
| --- | --- |
| base | the bare base |
| average | A and B averaged apart ("LoRAs Avg" in the paper) |
| sum, lego, … | Spolia's merge methods at the sources' rank, each source at weight 1 / sources |
| recycle-M | LoRA Recycle with M % of the patches masked in meta-training |
| recycle-M-mixed | the same with blended queries, which are ours (`merging/recycle/mixing.py`) |
| ensemble | every source by itself, prototypes and all; their probabilities averaged: a pass for each source |
| lorahub | weights of the sources, searched on each task's support set (`fitted.py`) |
| tuned | a LoRA of rank 4 and a linear head trained on each task's support set (`fitted.py`) |
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltas.adapter import Adapter
from merging.engine import run_merge
from merging.planning import plan_merge
from merging.recipe import Recipe
from merging.recycle.lora import averaged, read_lora, write_lora
from merging.recycle.params import BENCHMARK, RecycleParams
from merging.recycle.recycle import Progress, distil
from merging.recycle.source import Source
from merging.recycle.statistics import Moments
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase

MERGES = ("sum", "lego", "ties")
RECYCLED = ("recycle-75-mixed", "recycle-75", "recycle-0", "recycle-25", "recycle-50")
ENSEMBLE = "ensemble"
MIXED = 0.5  # of `recycle-M-mixed`
FITTED = ("lorahub", "tuned")  # to each task, so on fewer tasks than the others


def candidates() -> list[str]:
    """All names, the cheap ones first."""
    return ["base", "average", *MERGES, *RECYCLED, ENSEMBLE, *FITTED]


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
    mask = int(name.removeprefix("recycle-").removesuffix("-mixed")) / 100
    # One inversion serves all masks: tokens are not pruned in it, and the last block says which patches to see.
    inversion = params.inversion.model_copy(update={"prune": {}, "mask": {-1: mask} if mask else {}})
    meta = params.meta.model_copy(update={"mixed": MIXED if name.endswith("-mixed") else 0.0})
    place = folder / f"{name}-seed-{params.seed}"
    link_inversions(folder, place)
    own = params.model_copy(update={"inversion": inversion, "meta": meta})
    return distilled(name, base, sources, own, place, log)[0]


def link_inversions(folder: Path, place: Path) -> None:
    """Give the folder `place` the images that lie below `folder`; a distillation takes over only what fits it."""
    place.mkdir(parents=True, exist_ok=True)
    for made in sorted(folder.glob("**/recycle-*/*.safetensors")):
        if made.name.startswith(("inversion", "statistics")) and not (place / made.name).exists():
            (place / made.name).hardlink_to(made)


def profile(px: int, seed: int) -> RecycleParams:
    """The benchmark's choices at this size, in bfloat16, nothing pruned in inversion, tasks as in the paper. All seeds
    see the images of one inversion."""
    inversion = BENCHMARK.inversion.model_copy(update={"prune": {}, "seed": 0})
    meta = BENCHMARK.meta.model_copy(update={"mixed": 0.0})
    update = {"image_px": px, "seed": seed, "precision": "bfloat16", "inversion": inversion, "meta": meta}
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
        config = write_lora(source.lora, base, ("q_proj", "v_proj"), place)
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
