"""What an ensemble brings over one adapter and over a merge: accuracy, likelihood, calibration on an example task.

    python -m benchmarks.ensemble_quality sentiment --base FOLDER [--members 4] [--steps N] [--examples N]

Members are adapters of the task's own shape that differ in the seed of their start and in the order of their examples
(LoRA-Ensemble, arXiv 2405.14438, shows all members the same batches and gives A a wider start). They are trained by
`examples/train.py` (minutes each on two cores) and kept in the work folder; a second run only measures.

Measured on the held-out examples, over the task's labels: each member alone, the merge (the mean of their updates, by
PEFT's exact `cat`), and the ensemble (the mean of their distributions, by `serving/ensemble.py`). Accuracy, negative
log-likelihood in nats, and expected calibration error in ten equal bins of the likeliest label's probability; all from
mean probabilities, never from mean logits. For the ensemble also its mean mutual information where it is right and
where it is wrong. Writes benchmarks/results/ensemble_quality-TASK.json.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measuring import RESULTS, machine
from examples.tasks import SEED, TASKS, Example, Task
from examples.train import first_tokens, fit, last_logits
from serving.ensemble import predict

BINS, BATCH = 10, 25


def calibration_error(probabilities: Tensor, truth: Tensor) -> float:
    """Expected calibration error of predictions [examples, labels]: in equal bins of confidence, the distance between
    confidence and accuracy, weighted by how many examples fall there (Guo et al., arXiv 1706.04599, equation 3)."""
    confidence, answers = probabilities.max(-1)
    right = (answers == truth).double()
    bins = (confidence * BINS).ceil().clamp(1, BINS)
    gaps = [float((right[bins == one] - confidence[bins == one]).sum().abs()) for one in bins.unique()]
    return sum(gaps) / len(truth)


def scores(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, likelihood and calibration of predictions [examples, labels]."""
    return {
        "accuracy": float((probabilities.argmax(-1) == truth).double().mean()),
        "nll": float(-probabilities.gather(1, truth[:, None]).log().mean()),
        "ece": calibration_error(probabilities, truth),
    }


def compare(members: Tensor, merged: Tensor, truth: Tensor) -> dict[str, Any]:
    """Scores from label logits: members [members, examples, labels], of the merge [examples, labels]."""
    count = len(members)
    told = [predict(members[:, at], [1 / count] * count) for at in range(len(truth))]
    ensemble = torch.stack([prediction.logprobs for prediction in told]).exp()
    right = (ensemble.argmax(-1) == truth).tolist()
    alone = [scores(one.double().softmax(-1), truth) for one in members]
    unsure: dict[bool, list[float]] = {True: [], False: []}
    for prediction, well in zip(told, right, strict=True):
        unsure[well].append(prediction.uncertainty.mutual_information)
    return {
        "single": {name: fmean(one[name] for one in alone) for name in alone[0]},
        "members": alone,
        "merged": scores(merged.double().softmax(-1), truth),
        "ensemble": {
            **scores(ensemble, truth),
            "mutual_information_right": fmean(unsure[True]) if unsure[True] else None,
            "mutual_information_wrong": fmean(unsure[False]) if unsure[False] else None,
        },
    }


def trained(task: Task, base: Path, folder: Path, tokenizer: Any, members: int) -> Sequence[Path]:
    """The members' folders; those that are missing are trained first."""
    training, _ = task.examples()
    folders = [folder / f"{task.name}-{task.steps}-{seed}" for seed in range(SEED, SEED + members)]
    for seed, place in enumerate(folders, start=SEED):
        if not place.is_dir():
            print(f"{task.name}, seed {seed}", flush=True)
            staging = place.with_name(f".{place.name}.part")
            fit(task, base, tokenizer, training, seed).save_pretrained(staging)
            staging.rename(place)
    return folders


@torch.inference_mode()
def label_logits(model: Any, tokenizer: Any, examples: Sequence[Example]) -> Tensor:
    """The logits of the labels after each prompt: [examples, labels], float32."""
    labels = torch.tensor(first_tokens(tokenizer, examples[0].labels))
    parts = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    return torch.cat([last_logits(model, tokenizer, [one.prompt for one in part])[:, labels] for part in parts])


def measure(task: Task, base: Path, folders: Sequence[Path], tokenizer: Any, count: int) -> dict[str, Any]:
    """Train what is missing and compare on the first `count` held-out examples."""
    examples = task.examples()[1][:count]
    truth = torch.tensor([one.labels.index(one.label) for one in examples])
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = [place.name.replace(".", "_") for place in folders]
    model: Any = PeftModel.from_pretrained(plain, folders[0], adapter_name=names[0])
    for name, place in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(place, adapter_name=name)
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), "merged", combination_type="cat")
    logits = []
    for name in [*names, "merged"]:
        model.set_adapter(name)
        logits.append(label_logits(model.eval(), tokenizer, examples))
    return {"examples": len(examples), **compare(torch.stack(logits[:-1]), logits[-1], truth)}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", choices=TASKS, nargs="?", default="sentiment")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model (spolia-data/models/…)")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, help="training steps of a member; default: the task's")
    parser.add_argument("--examples", type=int, default=1000, help="most held-out examples")
    asked = parser.parse_args()
    task = TASKS[asked.task] if asked.steps is None else replace(TASKS[asked.task], steps=asked.steps)
    folder = Path(os.environ.get("SPOLIA_BENCH_DIR", "bench-data")) / "ensembles"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(asked.base, padding_side="left")
    folders = trained(task, asked.base, folder, tokenizer, asked.members)
    found = measure(task, asked.base, folders, tokenizer, asked.examples)
    for name in ("single", "merged", "ensemble"):
        one = found[name]
        print(f"{name:9} accuracy {one['accuracy']:.1%}  nll {one['nll']:.3f}  ece {one['ece']:.3f}")
    head = {"machine": machine(torch.get_num_threads()), "steps": task.steps}
    (RESULTS / f"ensemble_quality-{task.name}.json").write_text(json.dumps({**head, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
