"""What helps, and what the parts are worth: one distillation for each change to the benchmark's choices, few sources.

    python -m benchmarks.recycle.remedies [--folder DIR] [--sources emoji-84-60-0] [--count 6] [--only benchmark real]

A row each in `results/remedies.jsonl`; what is there is not measured again. Two variants need data, and say how far
surrogates are from it: `statistics-natural` takes the expected feature statistics from the sources' own training
images, and `real` meta-trains on those images instead of surrogates, with all else the same.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.recycle.__main__ import QUERIES, SHOTS, read_sources, test_images
from benchmarks.recycle.candidates import distilled, link_inversions, make, profile
from benchmarks.recycle.consensus import follow_consensus
from benchmarks.recycle.images import Images, read_images
from benchmarks.recycle.tasks import WAYS
from benchmarks.recycle.teaching import inverted, own_images, taught, trainable, trained
from benchmarks.recycle.variants import VARIANTS, changed
from benchmarks.recycle.workplace import options, vision_base
from merging.recycle.evaluate import EPISODES, embed, few_shot_accuracy
from merging.recycle.identity import digest
from merging.recycle.lora import new_lora
from merging.recycle.params import RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.statistics import Moments, feature_moments
from merging.recycle.updated import Lora
from merging.recycle.vision_base import VisionBase

RESULTS = Path(__file__).parent / "results" / "remedies.jsonl"
MASK = 75
ITERATIONS = 200
SETS = ("emoji", "tuxpaint")


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One variant on these sources, and the images that they were trained on."""

    name: str
    base: VisionBase
    sources: Sequence[Source]
    images: Images
    params: RecycleParams
    work: Path

    def made(self) -> tuple[Lora | None, dict[str, Any]]:
        """The adapter (None: the bare base) and what is to be told about how it came to be."""
        if self.name == "base":
            return None, {}
        if self.name in ("average", "ties"):
            return self._merged(self.name), {}
        if self.name.endswith("real") or "from-ties" in self.name:
            return self._trained()
        moments = self._natural_moments() if self.name == "statistics-natural" else None
        lora, report = distilled(
            self.name, self.base, self.sources, self.params, self._place(moments), print, moments=moments
        )
        curves = [curve for source in report["sources"] for curve in source["curves"]]
        more = {f: sum(c[-1][f] for c in curves) / len(curves) for f in ("cross_entropy", "features")}
        more |= {f"{at}_accuracy": report["meta"][index]["accuracy"] for at, index in (("first", 0), ("last", -1))}
        return lora, more | {"believed": sum(s["accuracy"] for s in report["sources"]) / len(report["sources"])}

    def _place(self, moments: Moments | None) -> Path:
        """A folder for what inverts alike, with all images of the work folder that may fit."""
        own = self.params.model_dump(mode="json", exclude={"meta"})
        place = self.work / f"remedies-{digest(len(self.sources), own)[:12]}-{bool(moments)}"
        link_inversions(self.work, place)
        return place

    def _merged(self, method: str) -> Lora:
        lora = make(method, self.base, self.sources, self.params, self.work / "remedies-merged", print)
        assert lora is not None  # only the bare base is none
        return lora

    def _trained(self) -> tuple[Lora, dict[str, Any]]:
        """Without a whole distillation: on other images, from another beginning, or towards another target."""
        base, params = self.base, self.params
        network = base.network.to(getattr(torch, params.precision))
        if self.name.endswith("real"):
            given = [own_images(base, self.images, s, params.per_class, params.seed) for s in self.sources]
            start = new_lora(base, params.targets, params.rank, generator(params.seed, "lora"))
        else:
            given = inverted(base, self.sources, params, self._place(None))
            start = trainable(self._merged("ties"))
        held = taught(network, self.sources, given, params)
        if self.name.startswith("consensus"):
            follow_consensus(network, self.sources, held, start, params.meta, params.seed)
            return start, {}
        steps, cycle = trained(network, held, start, params), params.meta.cycle
        return start, {"first_accuracy": sum(steps[:cycle]) / cycle, "last_accuracy": sum(steps[-cycle:]) / cycle}

    def _natural_moments(self) -> Moments:
        """The statistics of the sources' own training images."""
        params = self.params
        own = [own_images(self.base, self.images, s, params.per_class, params.seed)[0] for s in self.sources]
        return feature_moments(self.base.network.to(getattr(torch, params.precision)), torch.cat(own))


def measured(base: VisionBase, lora: Lora | None, tests: Mapping[str, Images], seed: int) -> dict[str, float]:
    """Accuracies in domain, and on stamps."""
    found = {}
    for name, test in tests.items():
        embeddings = embed(base.network, base.normalised(test.pixels / 255), lora)
        mark = "" if name == SETS[0] else f"{name}-"
        for shots in SHOTS:
            rng = generator(seed, "episodes", name, shots)
            one = few_shot_accuracy(
                embeddings, test.labels, ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, rng=rng
            )
            found |= {f"{mark}{shots}-shot": one.mean, f"{mark}{shots}-interval": one.interval}
    return found


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = options(__doc__, RESULTS)
    parser.add_argument("--sources", default="emoji-84-60-0", help="folder of sources (default: %(default)s)")
    parser.add_argument("--count", type=int, default=6, help="sources, the first ones (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the distillation (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    px = int(asked.sources.split("-")[1])
    base = vision_base(asked.folder)
    sources = read_sources(base, asked.folder / "sources" / asked.sources)[: asked.count]
    images = read_images("emoji", px, asked.folder)
    tests = {name: test_images(name, px, 0, asked.folder) for name in SETS}
    standard = changed(profile(px, asked.seed), {"iterations": ITERATIONS, "mask": {-1: MASK / 100}})
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.is_file() else []
    for name in asked.only:
        key = {"sources": asked.sources, "count": len(sources), "variant": name, "seed": asked.seed}
        if any(key.items() <= row.items() for row in known):
            continue
        started, worked = time.perf_counter(), time.process_time()
        variant = Variant(name, base, sources, images, changed(standard, VARIANTS[name]), asked.folder / "work")
        lora, more = variant.made()
        cost = {
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - worked, 1),
        }
        row = key | more | cost | measured(base, lora, tests, asked.seed)
        print(f"{name}: {json.dumps(row)}", flush=True)
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        with asked.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
