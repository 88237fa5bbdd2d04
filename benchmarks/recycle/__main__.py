"""Few-shot accuracy of every candidate, in-domain and on sets that no source has seen, or go on with it.

    python -m benchmarks.recycle [--folder DIR] [--only recycle-75 base] [--seeds 0 1 2] [--fitted 60]

Every cell is a line of `results/recycle.jsonl`; what is there is not measured again. Train the sources first
(`python -m benchmarks.recycle.train_sources`).
"""

import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from benchmarks.recycle.candidates import ENSEMBLE, FITTED, candidates, make, profile
from benchmarks.recycle.fitted import fitted_accuracy, lorahub, tuned, voted
from benchmarks.recycle.images import Images, read_images
from benchmarks.recycle.tasks import WAYS, split_classes
from benchmarks.recycle.workplace import options, vision_base
from deltas.adapter import Adapter
from merging.recycle.evaluate import EPISODES, Accuracy, embed, few_shot_accuracy
from merging.recycle.randomness import generator
from merging.recycle.source import Source, open_source
from merging.recycle.vision_base import VisionBase

RESULTS = Path(__file__).parent / "results" / "recycle.jsonl"
CROSS = ("emoji-google", "tuxpaint", "cifar", "fashion")
MOST = 60  # images of each test class
SHOTS = (1, 5)
QUERIES = 15


def test_images(name: str, px: int, seed: int, folder: Path) -> Images:
    """What is tested on: of emoji, in either drawing, only classes that no source has seen."""
    images = read_images(name, px, folder)
    if name.startswith("emoji"):
        unseen = split_classes(read_images("emoji", px, folder).classes, seed).test
        images = images.only(set(unseen))
    kept = torch.cat([(images.labels == c).nonzero().flatten()[:MOST] for c in range(len(images.classes))])
    return Images(images.pixels[kept], images.labels[kept], images.classes)


def read_sources(base: VisionBase, place: Path) -> list[Source]:
    """All finished sources in a folder."""
    found = []
    for folder in sorted(place.glob("[0-9]*")):
        adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
        classes = tuple(json.loads((folder / "task.json").read_text())["classes"])
        found.append(open_source(f"bench/source-{folder.name}@1", adapter, base, classes=classes))
    return found


class Ledger:
    """The file of rows: what is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def has(self, key: Mapping[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def keep(self, row: dict[str, Any], found: Accuracy) -> None:
        row |= {"mean": found.mean, "interval": found.interval, "episodes": found.episodes}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        name = f"{row['candidate']} {row['set']} {row['shots']}-shot, seed {row['seed']}"
        print(f"{name}: {100 * found.mean:.1f} ± {100 * found.interval:.1f}", flush=True)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Everything that candidates are made of, and where rows go."""

    base: VisionBase
    sources: Sequence[Source]
    sources_name: str
    folder: Path
    ledger: Ledger

    @property
    def px(self) -> int:
        return int(self.sources_name.split("-")[-3])

    def key(self, candidate: str, name: str, shots: int, seed: int) -> dict[str, Any]:
        own = {"sources": self.sources_name, "count": len(self.sources), "candidate": candidate}
        return own | {"set": name, "shots": shots, "seed": seed}

    def pixels(self, name: str) -> tuple[Tensor, Tensor]:
        """Normalised images of a test set, and labels; the split of classes is the sources'."""
        images = test_images(name, self.px, int(self.sources_name.rsplit("-", 1)[1]), self.folder)
        return self.base.normalised(images.pixels / 255), images.labels

    def measure(self, candidate: str, seed: int, sets: Sequence[str]) -> None:
        """One adapter on all sets."""
        todo = [n for n in sets if not all(self.ledger.has(self.key(candidate, n, s, seed)) for s in SHOTS)]
        if not todo:
            return
        started, worked = time.perf_counter(), time.process_time()
        place = self.folder / "work" / f"{self.sources_name}-{len(self.sources)}"
        params = profile(self.px, seed)
        lora = make(candidate, self.base, self.sources, params, place, lambda text: print(text, flush=True))
        cost = {
            "seconds": round(time.perf_counter() - started),
            "processor_seconds": round(time.process_time() - worked),
        }
        cost["peak_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        network = self.base.network.to(getattr(torch, params.precision))
        for name in todo:
            pixels, labels = self.pixels(name)
            embeddings = embed(network, pixels, lora)
            for shots in SHOTS:
                key = self.key(candidate, name, shots, seed)
                rng = generator(seed, "episodes", name, shots)
                found = few_shot_accuracy(
                    embeddings, labels, ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, rng=rng
                )
                self.ledger.keep(key | cost, found)

    def measure_ensemble(self, seeds: Sequence[int], sets: Sequence[str]) -> None:
        """All sources side by side; what they make of an image is the same for all seeds."""
        network = self.base.network.to(getattr(torch, profile(self.px, 0).precision))
        for name in sets:
            keys = {(seed, shots): self.key(ENSEMBLE, name, shots, seed) for seed in seeds for shots in SHOTS}
            todo = {own: key for own, key in keys.items() if not self.ledger.has(key)}
            if not todo:
                continue
            pixels, labels = self.pixels(name)
            embeddings = torch.stack([embed(network, pixels, source.lora) for source in self.sources], 1)
            for (seed, shots), key in todo.items():
                found = fitted_accuracy(
                    ENSEMBLE, voted, embeddings, labels,
                    ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, seed=seed,
                )  # fmt: skip
                self.ledger.keep(key, found)

    def measure_fitted(self, candidate: str, seed: int, tasks: int) -> None:
        """What is fitted to each task, in domain only; at 5-shot, which takes four times as long, a third as many."""
        network = self.base.network.to(getattr(torch, profile(self.px, seed).precision))
        own = lorahub(network, [source.lora for source in self.sources])
        solver = own if candidate == "lorahub" else tuned(self.base, network)
        for shots in SHOTS:
            key = self.key(candidate, "emoji", shots, seed)
            many = -(-tasks // 3) if shots > 1 else tasks
            if not self.ledger.has(key):
                pixels, labels = self.pixels("emoji")
                started = time.process_time()
                found = fitted_accuracy(
                    candidate, solver, pixels, labels,
                    ways=WAYS, shots=shots, queries=QUERIES, episodes=many, seed=seed,
                )  # fmt: skip
                self.ledger.keep(key | {"processor_seconds": round(time.process_time() - started)}, found)


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = options(__doc__, RESULTS)
    parser.add_argument("--sources", default="emoji-84-60-0", help="folder of sources (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=candidates(), help="candidates (default: all)")
    parser.add_argument("--sets", nargs="+", default=["emoji", *CROSS], help="test sets (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of meta-training and tasks")
    parser.add_argument(
        "--fitted", type=int, default=60, help="1-shot tasks of what is fitted to each (default: %(default)s)"
    )
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = vision_base(asked.folder)
    sources = read_sources(base, asked.folder / "sources" / asked.sources)
    bench = Bench(base, sources, asked.sources, asked.folder, Ledger(asked.results))
    if ENSEMBLE in asked.only:
        bench.measure_ensemble(asked.seeds, asked.sets)
    for seed in asked.seeds:
        for candidate in asked.only:
            if candidate in FITTED:
                bench.measure_fitted(candidate, seed, asked.fitted)
            elif candidate != ENSEMBLE:
                bench.measure(candidate, seed, asked.sets)


if __name__ == "__main__":
    main()
