"""Our extension to texts, measured on real ones: does a meta-adapter of text adapters help on a task that none knows?

    python -m benchmarks.recycle.text [--adapters DIR] [--only base sum recycle-free recycle-real]

Sources are adapters of SmolLM2 with label words, as `python -m benchmarks.quality --adapters --only seed=0 kind=qv
group=seven` trains them (in its work folder, by default); the tasks are read as there. In each fold some tasks are
held out: their adapters are no sources, their texts are what is tested on, five ways, no instruction. A row each in
`results/recycle-text.jsonl`.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from benchmarks.quality.tasks import TASKS, Pairs, read_pairs
from benchmarks.recycle.__main__ import QUERIES, SHOTS, Ledger
from benchmarks.recycle.tasks import WAYS
from benchmarks.recycle.workplace import DATA, INSTALLED, options
from deltas.adapter import Adapter
from merging.recycle.evaluate import EPISODES, few_shot_accuracy
from merging.recycle.lora import read_lora, summed
from merging.recycle.params import MetaParams, TextInversionParams, TextRecycleParams
from merging.recycle.phases import Progress
from merging.recycle.randomness import generator
from merging.recycle.text import TextDistillation
from merging.recycle.text_base import TextBase, load_text_base
from merging.recycle.text_predict import embed_texts
from merging.recycle.text_source import LabelWords, TextSource, open_text_source
from merging.recycle.updated import Lora
from serving.base_model import DEFAULT_BASE, ensure_base

RESULTS = Path(__file__).parent / "results" / "recycle-text.jsonl"
FOLDS = (("question", "intent"), ("language", "units"))
SOURCES = ("question", "sentiment", "adjectives", "spam", "intent", "units", "language")
CANDIDATES = ("base", "sum", "recycle-free", "recycle-real")
MOST = 40  # texts of a class


def choices(tokens: str, seed: int) -> TextRecycleParams:
    """What is chosen for the benchmark."""
    inversion = {"steps": 40, "rate": 0.2, "batch": 40, "decay": True, "tokens": tokens}
    return TextRecycleParams(
        length=8,
        texts_per_class=6,
        precision="bfloat16",
        seed=seed,
        inversion=TextInversionParams.model_validate(inversion),
        meta=MetaParams(iterations=120, cycle=60, warmup=15, queries=5),
    )


def open_sources(names: Sequence[str], place: Path, base: TextBase) -> list[TextSource]:
    """The adapters of these tasks, asked as they were trained."""
    found = []
    for name in names:
        task, folder = TASKS[name], place / name
        adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
        words = LabelWords(f"{task.stem}{{text}}\nAnswer:", tuple(f" {label}" for label in task.labels))
        found.append(open_text_source(f"bench/{name}@1", adapter, base, label_words=words, classes=task.labels))
    return found


def labelled(pairs: Pairs, seed: int) -> tuple[list[str], Tensor]:
    """At most `MOST` texts of each class that has enough for a task."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for text, label in Random(seed).sample(pairs, len(pairs)):
        by_label[label].append(f" {text}")
    enough = [found[:MOST] for _, found in sorted(by_label.items()) if len(found) >= max(SHOTS) + QUERIES]
    return [text for found in enough for text in found], torch.tensor([c for c, f in enumerate(enough) for _ in f])


def make(name: str, base: TextBase, sources: Sequence[TextSource], seed: int, place: Path) -> Lora | None:
    """The adapter of that name; None for the bare base."""
    if name == "base":
        return None
    if name == "sum":
        return summed([(source.lora, 1 / len(sources)) for source in sources])

    def report(progress: Progress) -> None:
        if progress.done % 10 == 0:
            print(f"{name}: {progress.phase} {progress.done}/{progress.total} {dict(progress.losses)}", flush=True)

    params = choices(name.removeprefix("recycle-"), seed)
    run = TextDistillation(base, sources, params, place, on_progress=report)
    result = run.run()
    (place / "report.json").write_text(json.dumps(result.report))
    (place / "texts.json").write_text(json.dumps(run.surrogates()))
    (place / "adapter_config.json").write_text(json.dumps(result.config))
    return read_lora(name, Adapter.open(place / "adapter_config.json", result.weights), base)


def main() -> None:
    """Read the command line and measure what is missing."""
    parser = options(__doc__, RESULTS)
    parser.add_argument("--data", type=Path, default=DATA, help="where BIG-bench is kept (default: %(default)s)")
    parser.add_argument("--adapters", type=Path, default=DATA / "adapters/qv/0", help="sources (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=CANDIDATES, help="candidates (default: all)")
    parser.add_argument("--folds", nargs="+", type=int, default=range(len(FOLDS)), help="folds (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of distillation and tasks")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = load_text_base(ensure_base(DEFAULT_BASE, [INSTALLED], asked.folder / "models"))
    ledger = Ledger(asked.results)
    for seed in asked.seeds:
        for fold in asked.folds:
            names = [name for name in SOURCES if name not in FOLDS[fold]]
            sources = open_sources(names, asked.adapters, base)
            pairs = read_pairs([TASKS[name] for name in FOLDS[fold]], asked.data)
            for candidate in asked.only:
                place = asked.folder / "work-text" / f"{fold}-{candidate}-{seed}"
                measure(candidate, seed, base, sources, pairs, place, ledger)


def measure(
    candidate: str, seed: int, base: TextBase, sources: Sequence[TextSource], pairs: Mapping[str, Pairs], place: Path,
    ledger: Ledger,
) -> None:  # fmt: skip
    """The rows of one candidate on the held-out tasks `pairs`, unless they are there."""
    known = [source.ref.removeprefix("bench/").removesuffix("@1") for source in sources]
    keys: dict[tuple[str, int], dict[str, Any]] = {
        (name, shots): {"candidate": candidate, "sources": known, "set": name, "shots": shots, "seed": seed}
        for name in pairs
        for shots in SHOTS
    }
    if all(ledger.has(key) for key in keys.values()):
        return
    started = time.process_time()
    lora = make(candidate, base, sources, seed, place)
    seconds = round(time.process_time() - started)
    for name, examples in pairs.items():
        texts, labels = labelled(examples, seed)
        embeddings = embed_texts(base, texts, lora)
        for shots in SHOTS:
            rng = generator(seed, "episodes", name, shots)
            found = few_shot_accuracy(
                embeddings, labels, ways=WAYS, shots=shots, queries=QUERIES, episodes=EPISODES, rng=rng
            )
            ledger.keep(keys[name, shots] | {"processor_seconds": seconds}, found)


if __name__ == "__main__":
    main()
