"""Few-shot accuracy of every candidate, in-domain and on sets that no source has seen, or go on with it.

    python -m benchmarks.recycle [--folder DIR] [--only recycle-75 base] [--tuned 0]

Every cell is a line of `results/recycle.jsonl`; what is there is not measured again. Train the sources first
(`python -m benchmarks.recycle.train_sources`).
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.recycle.candidates import candidates, make, tuned_accuracy
from benchmarks.recycle.images import Images, read_images
from benchmarks.recycle.tasks import WAYS, split_classes
from deltas.adapter import Adapter
from merging.recycle.evaluate import EPISODES, Accuracy, embed, few_shot_accuracy
from merging.recycle.params import BENCHMARK
from merging.recycle.randomness import generator
from merging.recycle.source import Source, open_source
from merging.recycle.vision_base import DEFAULT_VISION_BASE, VisionBase, ensure_vision_base, load_vision_base

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


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("SPOLIA_BENCH_DIR", "bench-data")) / "recycle"
    parser.add_argument("--folder", type=Path, default=default, help="work folder (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows (default: %(default)s)")
    parser.add_argument("--sources", default="emoji-84-60-0", help="folder of sources (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=candidates(), help="candidates (default: all)")
    parser.add_argument("--sets", nargs="+", default=["emoji", *CROSS], help="test sets (default: all)")
    parser.add_argument("--tuned", type=int, default=0, help="tasks of the tuned baseline (default: none)")
    parser.add_argument(
        "--iterations", type=int, default=BENCHMARK.meta.iterations, help="of meta-training (default: %(default)s)"
    )
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    px, seed = int(asked.sources.split("-")[-3]), int(asked.sources.split("-")[-1])
    base = load_vision_base(
        ensure_vision_base(DEFAULT_VISION_BASE, [Path(sys.prefix) / "share/spolia/models"], asked.folder / "models")
    )
    sources = read_sources(base, asked.folder / "sources" / asked.sources)
    meta = BENCHMARK.meta.model_copy(update={"iterations": asked.iterations})
    params = BENCHMARK.model_copy(update={"image_px": px, "seed": seed, "meta": meta})
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.is_file() else []

    def key_of(candidate: str, name: str, shots: int) -> dict[str, Any]:
        key = {"sources": asked.sources, "count": len(sources), "candidate": candidate, "set": name, "shots": shots}
        return key | ({"iterations": asked.iterations} if candidate.startswith("recycle") else {})

    def missing(candidate: str, name: str, shots: int) -> bool:
        return not any(key_of(candidate, name, shots).items() <= row.items() for row in known)

    def keep(candidate: str, name: str, shots: int, found: Accuracy, **more: Any) -> None:
        row = key_of(candidate, name, shots)
        row |= {"mean": found.mean, "interval": found.interval, "episodes": found.episodes, **more}
        with asked.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{candidate} {name} {shots}-shot: {100 * found.mean:.1f} ± {100 * found.interval:.1f}", flush=True)

    for candidate in asked.only:
        todo = [name for name in asked.sets if any(missing(candidate, name, shots) for shots in SHOTS)]
        if not todo:
            continue
        started = time.perf_counter()
        place = asked.folder / "work" / f"{asked.sources}-{len(sources)}"
        lora = make(candidate, base, sources, params, place, lambda text: print(text, flush=True))
        seconds = time.perf_counter() - started
        for name in todo:
            images = test_images(name, px, seed, asked.folder)
            embeddings = embed(base.network, base.normalised(images.pixels / 255), lora)
            for shots in SHOTS:
                rng = generator(seed, "episodes", name, shots)
                found = few_shot_accuracy(
                    embeddings, images.labels, ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, rng=rng
                )
                keep(candidate, name, shots, found, seconds=round(seconds, 1))
    for shots in SHOTS if asked.tuned else ():
        if missing("tuned", "emoji", shots):
            images = test_images("emoji", px, seed, asked.folder)
            pixels = base.normalised(images.pixels / 255)
            found = tuned_accuracy(
                base, pixels, images.labels,
                ways=WAYS, shots=shots, queries=QUERIES, episodes=asked.tuned, seed=seed,
            )  # fmt: skip
            keep("tuned", "emoji", shots, found)


if __name__ == "__main__":
    main()
