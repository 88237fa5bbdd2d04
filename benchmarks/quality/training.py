"""One adapter, trained on one task or on several: PEFT's LoRA beside a bfloat16 base, loss on the label's token only.

Each batch is one packed row of `BATCH` prompts, the tasks taking turns. The learning rate falls linearly. Every
`check` steps the validation split is scored; the best weights so far are kept, and training ends at the last step,
when everything is right, or when two scores in a row were no better.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import cross_entropy

from benchmarks.quality.packing import Encoded, Row, hidden, pack, right

BATCH, PATIENCE, WARM = 8, 2, 10


@dataclass(frozen=True, slots=True)
class Course:
    """How an adapter is shaped, and how long it is trained."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    learning_rate: float
    steps: int
    check: int


def batches(tasks: Sequence[Sequence[Encoded]], rng: Random) -> Iterator[list[Encoded]]:
    """Batches without end; the tasks take turns, and each task's examples come once a round in a new order."""
    pools: list[list[Encoded]] = [[] for _ in tasks]
    turns = count()
    while True:
        batch: list[Encoded] = []
        while len(batch) < BATCH:
            turn = next(turns) % len(tasks)
            if not pools[turn]:
                pools[turn] = rng.sample(list(tasks[turn]), len(tasks[turn]))
            batch.append(pools[turn].pop())
        yield batch


def train(
    model: Any,
    course: Course,
    training: Sequence[Sequence[Encoded]],
    validation: Sequence[Row],
    seed: int,
    log: Callable[[str], None],
) -> Any:
    """A PEFT model around `model` (whose layers it changes) with the best weights; the seed decides init and order."""
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=course.rank, lora_alpha=course.alpha, target_modules=list(course.targets)
    )
    tuned: Any = get_peft_model(model, config)
    inner = tuned.get_base_model()
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=course.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM, 1 - step / (course.steps + 1))
    )
    best, stale = -1.0, 0
    kept: dict[str, torch.Tensor] = {}
    for step, batch in enumerate(batches(training, Random(seed)), start=1):
        row = pack(batch)
        loss = cross_entropy(inner.lm_head(hidden(inner, row)[row.ends]).float(), row.answers)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        if step % course.check == 0 or step == course.steps:
            score = accuracy(inner, validation)
            log(f"step {step}/{course.steps}, loss {loss.item():.3f}, validation {100 * score:.1f} %")
            stale += 1
            if score > best:
                best, stale = score, 0
                kept = {name: weight.clone() for name, weight in get_peft_model_state_dict(tuned).items()}
            if stale == PATIENCE or best == 1 or step == course.steps:
                break
    set_peft_model_state_dict(tuned, kept)
    return tuned


def accuracy(model: Any, rows: Sequence[Row]) -> float:
    """Share of prompts answered right."""
    answers = [one for row in rows for one in right(model, row)]
    return sum(answers) / len(answers)


def save(tuned: Any, base_name: str, folder: Path) -> None:
    """Write the adapter as PEFT does; the folder appears at once, when it is whole."""
    tuned.peft_config["default"].base_model_name_or_path = base_name
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    tuned.save_pretrained(staging, save_embedding_layers=False)
    staging.rename(folder)
