"""Train the example adapters, measure them, and write them with their cards and held-out examples.

    python -m examples.train spam --base FOLDER      one task; without a name: all of them, one after the other

The loss is taken on the label's token only, which is why the head runs on the last position alone. Training is in
bfloat16 with the adapter's own weights in float32; the accuracies in the card are measured in float32 on the
adapter as it was saved and read back. PEFT makes, trains, writes and reads the adapter. Seeds are fixed, but sums
on another machine or with other thread counts may round differently.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.cards import write_card
from examples.tasks import SEED, TASKS, Example, Task

HERE = Path(__file__).parent
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH = 8
LEARNING_RATE = 5e-4
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def first_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """The token of each label; raises ValueError when one is more than one token or two share it."""
    ids = [tokenizer(label)["input_ids"] for label in labels]
    if any(len(one) != 1 for one in ids) or len({one[0] for one in ids}) != len(labels):
        raise ValueError(f"every label must be one token of its own, got {dict(zip(labels, ids, strict=True))}")
    return [int(one[0]) for one in ids]


def last_logits(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """The logits after each prompt: (prompts, vocabulary), float32."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    logits: Tensor = model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
    return logits


@torch.inference_mode()
def accuracy(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Share of examples whose label has the highest logit among all labels, in percent."""
    choices = torch.tensor(first_tokens(tokenizer, examples[0].labels))
    # Sorted by length so that little padding is computed; the order does not change what is counted.
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    right = 0
    for start in range(0, len(ordered), 25):
        part = ordered[start : start + 25]
        answers = last_logits(model, tokenizer, [one.prompt for one in part])[:, choices].argmax(-1).tolist()
        right += sum(one.labels[answer] == one.label for one, answer in zip(part, answers, strict=True))
    return 100 * right / len(examples)


def batches(examples: Sequence[Example], steps: int, rng: Random) -> Iterator[list[Example]]:
    """`steps` batches, each example once per round."""
    pool: list[Example] = []
    for _ in range(steps):
        if len(pool) < BATCH:
            pool = rng.sample(list(examples), len(examples))
        yield [pool.pop() for _ in range(BATCH)]


def fit(task: Task, base: Path, tokenizer: Any, examples: Sequence[Example], seed: int = SEED) -> Any:
    """A PEFT model of the task, trained; the seed decides its start and the order of the examples."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=BASE, **task.lora)
    model = get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    warm = 10
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (task.steps - step) / (task.steps - warm))
    )
    answers = dict(zip(examples[0].labels, first_tokens(tokenizer, examples[0].labels), strict=True))
    started, running = time.perf_counter(), 0.0
    for step, batch in enumerate(batches(examples, task.steps, Random(seed)), start=1):
        goal = torch.tensor([answers[example.label] for example in batch])
        loss = cross_entropy(last_logits(model, tokenizer, [example.prompt for example in batch]), goal)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        running += loss.item()
        if step % 20 == 0:
            seconds = time.perf_counter() - started
            print(f"  step {step}/{task.steps}  loss {running / 20:.3f}  {seconds:.0f} s", flush=True)
            running = 0.0
    return model.eval()


def save(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Let PEFT write the adapter, then store its tensors in `dtype`."""
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    weights.chmod(0o644)


def train(task: Task, base: Path, out: Path, *, base_only: bool) -> None:
    """Train, save, measure and describe one task."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
    training, held_out = task.examples()
    if {one.prompt for one in training} & {one.prompt for one in held_out}:
        raise ValueError(f"{task.name}: a held-out example is also a training example")
    print(f"{task.name}: {len(training)} training and {len(held_out)} held-out examples", flush=True)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)  # in evaluation mode
    before = accuracy(plain, tokenizer, held_out)
    print(f"  base {before:.1f}", flush=True)
    if base_only:
        return
    model = fit(task, base, tokenizer, training)
    folder = out / "adapters" / task.name
    save(model, folder, DTYPES[task.dtype])
    tuned = PeftModel.from_pretrained(plain, folder)  # in evaluation mode
    after = accuracy(tuned, tokenizer, held_out)
    print(f"  own adapter {after:.1f} (base {before:.1f})", flush=True)
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in held_out]
    (out / "heldout").mkdir(parents=True, exist_ok=True)
    (out / "heldout" / f"{task.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_card(task, folder, base=BASE, training=len(training), held_out=held_out, before=before, after=after)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"any of: {', '.join(TASKS)} (default: all)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model (spolia-data/models/…)")
    parser.add_argument("--out", type=Path, default=HERE, help="where adapters/ and heldout/ are written")
    parser.add_argument("--base-only", action="store_true", help="only measure the base model")
    asked = parser.parse_args()
    for name in asked.tasks or TASKS:
        if name not in TASKS:
            parser.error(f"unknown task {name!r}; known: {', '.join(TASKS)}")
        train(TASKS[name], asked.base, asked.out, base_only=asked.base_only)


if __name__ == "__main__":
    main()
