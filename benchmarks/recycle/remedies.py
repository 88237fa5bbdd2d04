"""What helps, and what the parts are worth: one distillation for each change to the benchmark's choices, few sources.

    python -m benchmarks.recycle.remedies [--folder DIR] [--sources emoji-84-60-0] [--count 6] [--only benchmark real]

A row each in `results/remedies.jsonl`; what is there is not measured again. Two variants need data, and say how far
surrogates are from it: `statistics-natural` takes the expected feature statistics from the sources' own training
images, and `real` meta-trains on those images instead of surrogates, with all else the same.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from benchmarks.recycle.__main__ import QUERIES, SHOTS, read_sources, test_images
from benchmarks.recycle.candidates import distilled, link_inversions, profile
from benchmarks.recycle.images import Images, read_images
from benchmarks.recycle.tasks import WAYS
from merging.recycle.evaluate import EPISODES, embed, few_shot_accuracy
from merging.recycle.identity import digest
from merging.recycle.inversion import surviving_patches
from merging.recycle.lora import averaged, new_lora
from merging.recycle.meta import MetaTraining, train
from merging.recycle.params import RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.statistics import Moments, feature_moments
from merging.recycle.surrogates import Pool, Surrogates, ask_teacher
from merging.recycle.updated import Lora
from merging.recycle.vision_base import DEFAULT_VISION_BASE, VisionBase, ensure_vision_base, load_vision_base

RESULTS = Path(__file__).parent / "results" / "remedies.jsonl"
MASK = 75
ITERATIONS = 200
PLAIN: dict[str, Any] = {
    "steps": 60, "images_per_class": 8, "batch": 40, "queries": 7, "grain": 1, "decay": False, "tv_weight": 0.05,
    "generated": "leaves",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "average": {},
    "benchmark": {},
    "real": {},
    "statistics-none": {"feature_weight": 0.0},
    "statistics-leaves": {"generated": "leaves"},
    "statistics-natural": {},
    "steps-15": {"steps": 15},
    "meta-squared": {"distance": "squared"},
    "meta-teacher-student": {"divergence": "teacher_student"},
    "meta-temperature-3": {"temperature": 3.0},
    "meta-interpolation-0": {"interpolation": 0.0},
    "meta-interpolation-1": {"interpolation": 1.0},
    "meta-distinct": {"distinct": True},
    "meta-distinct-ways-12": {"distinct": True, "ways": 12, "interpolation": 1.0},
    "meta-squared-temperature-30": {"distance": "squared", "temperature": 30.0},
    "meta-rate-3e-4": {"high_rate": 3e-4},
    "meta-masked-0": {"mask": {}},
    "plain": PLAIN,
    "plain-rate-0.1-variation-0.3": {**PLAIN, "rate": 0.1, "tv_weight": 0.3},
    "plain-grain-3": {**PLAIN, "grain": 3, "tv_weight": 0.0},
    "plain-real": PLAIN,
}
"""Name -> what is changed of the benchmark's choices, in inversion, in meta-training or in the whole. `plain` is what a
distillation of this size was before remedies: no grid, no decay, leaves."""


def changed(params: RecycleParams, update: dict[str, Any]) -> RecycleParams:
    """The same with other values of these fields, in whatever part they are."""
    document = params.model_dump()
    for name, value in update.items():
        part = next((own for own in (document["inversion"], document["meta"], document) if name in own), None)
        if part is None:
            raise KeyError(name)
        part[name] = value
    return RecycleParams.model_validate(document)


def own_images(base: VisionBase, images: Images, source: Source, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """As many real images of a source's classes as it would get surrogates, normalised, and their labels."""
    rng = generator(seed, "real", source.ref)
    found, labels = [], []
    for way, name in enumerate(source.classes):
        members = (images.labels == images.classes.index(name)).nonzero().flatten()
        found.append(images.pixels[members[torch.randperm(len(members), generator=rng)[:per_class]]])
        labels.append(torch.full((len(found[-1]),), way))
    return base.normalised(torch.cat(found) / 255), torch.cat(labels)


def from_real_images(
    base: VisionBase, sources: Sequence[Source], images: Images, params: RecycleParams, per_class: int
) -> tuple[Lora, list[float]]:
    """Meta-training as ever, on real images: what surrogates could reach at best; and every step's accuracy."""
    network = base.network.to(getattr(torch, params.precision))
    held = []
    for source in sources:
        own, labels = own_images(base, images, source, per_class, params.seed)
        patches = surviving_patches(network, source, own, params.inversion.masking)
        held.append(Surrogates(own, labels, patches, ask_teacher(network, source, own, patches)))
    state = MetaTraining(new_lora(base, params.targets, params.rank, generator(params.seed, "lora")))
    steps: list[float] = []
    pool = Pool(held, network.grid(held[0].inputs)[1])
    train(state, network, pool, params.meta, params.seed, lambda step: steps.append(step.accuracy))
    return state.lora, steps


def natural_moments(base: VisionBase, sources: Sequence[Source], images: Images, params: RecycleParams) -> Moments:
    """The statistics of the sources' own training images."""
    own = [own_images(base, images, source, params.per_class, params.seed)[0] for source in sources]
    return feature_moments(base.network.to(getattr(torch, params.precision)), torch.cat(own))


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("SPOLIA_BENCH_DIR", "bench-data")) / "recycle"
    parser.add_argument("--folder", type=Path, default=default, help="work folder (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows (default: %(default)s)")
    parser.add_argument("--sources", default="emoji-84-60-0", help="folder of sources (default: %(default)s)")
    parser.add_argument("--count", type=int, default=6, help="sources, the first ones (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the distillation (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    px = int(asked.sources.split("-")[1])
    base = load_vision_base(
        ensure_vision_base(DEFAULT_VISION_BASE, [Path(sys.prefix) / "share/spolia/models"], asked.folder / "models")
    )
    sources = read_sources(base, asked.folder / "sources" / asked.sources)[: asked.count]
    images = read_images("emoji", px, asked.folder)
    test = test_images("emoji", px, 0, asked.folder)
    pixels = base.normalised(test.pixels / 255)
    standard = changed(profile(px, asked.seed), {"iterations": ITERATIONS, "mask": {-1: MASK / 100}})
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.is_file() else []
    for name in asked.only:
        key = {"sources": asked.sources, "count": len(sources), "variant": name, "seed": asked.seed}
        if any(key.items() <= row.items() for row in known):
            continue
        params = changed(standard, VARIANTS[name])
        started, worked = time.perf_counter(), time.process_time()
        more: dict[str, Any] = {}
        lora: Lora | None = None
        if name == "average":
            lora = averaged([source.lora for source in sources])
        elif name.endswith("real"):
            lora, steps = from_real_images(base, sources, images, params, params.per_class)
            cycle = params.meta.cycle
            more = {"first_accuracy": sum(steps[:cycle]) / cycle, "last_accuracy": sum(steps[-cycle:]) / cycle}
        elif name != "base":
            moments = natural_moments(base, sources, images, params) if name == "statistics-natural" else None
            own = params.model_dump(mode="json", exclude={"meta"})
            place = asked.folder / "work" / f"remedies-{digest(key['sources'], key['count'], own)[:12]}-{bool(moments)}"
            link_inversions(asked.folder / "work", place)
            lora, report = distilled(name, base, sources, params, place, print, moments=moments)
            curves = [curve for source in report["sources"] for curve in source["curves"]]
            more = {f: sum(c[-1][f] for c in curves) / len(curves) for f in ("cross_entropy", "features")}
            more |= {f"{at}_accuracy": report["meta"][index]["accuracy"] for at, index in (("first", 0), ("last", -1))}
            more |= {"believed": sum(s["accuracy"] for s in report["sources"]) / len(report["sources"])}
        embeddings = embed(base.network, pixels, lora)
        row: dict[str, Any] = {**key, **more, "seconds": round(time.perf_counter() - started, 1)}
        row["processor_seconds"] = round(time.process_time() - worked, 1)
        for shots in SHOTS:
            rng = generator(asked.seed, "episodes", "emoji", shots)
            found = few_shot_accuracy(
                embeddings, test.labels, ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, rng=rng
            )
            row[f"{shots}-shot"], row[f"{shots}-interval"] = found.mean, found.interval
        print(f"{name}: {json.dumps(row)}", flush=True)
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        with asked.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
