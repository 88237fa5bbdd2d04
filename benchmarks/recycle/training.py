"""One source: a LoRA of rank 4 on q and v with a linear head, trained by Adam at 1e-3 (LoRA Recycle, arXiv 2412.02220,
sec. 5), written as PEFT writes it, the head among `modules_to_save`.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.recycle.images import Images
from merging.recycle.lora import PEFT_PREFIX, new_lora, write_lora
from merging.recycle.randomness import generator
from merging.recycle.source import Head
from merging.recycle.vision_base import VisionBase

RANK, TARGETS, RATE, BATCH = 4, ("q_proj", "v_proj"), 1e-3, 25
HELD_OUT = 0.2  # of each class, to know what the source can do


def train_source(
    base: VisionBase, task: Images, steps: int, seed: int, folder: Path, log: Callable[[str], None]
) -> float:
    """Train on a task's images (labels 0 … ways − 1) and write the folder; returns the accuracy on held-out images.

    The folder appears at once, when it is whole.
    """
    rng = generator(seed, "source", folder.name)
    order = torch.randperm(len(task.labels), generator=rng)
    held = order[: round(HELD_OUT * len(order))]
    own = order[len(held) :]
    lora = new_lora(base, TARGETS, RANK, rng)
    ways = len(task.classes)
    bound = 1 / math.sqrt(base.width)
    weight = ((torch.rand(ways, base.width, generator=rng) * 2 - 1) * bound).requires_grad_()
    head = Head(weight, torch.zeros(ways, requires_grad=True))
    sides = [side for _, factors in sorted(lora.items()) for side in (factors.A, factors.B)]
    optimiser = torch.optim.Adam([*sides, head.weight, head.bias], lr=RATE)
    waiting: list[int] = []
    for step in range(1, steps + 1):
        if len(waiting) < BATCH:
            waiting += own[torch.randperm(len(own), generator=rng)].tolist()
        batch, waiting = torch.tensor(waiting[:BATCH]), waiting[BATCH:]
        flips = torch.rand(len(batch), generator=rng) < 0.5
        images = base.normalised(task.pixels[batch] / 255)
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
        loss = F.cross_entropy(head.logits(base.network(images, lora)), task.labels[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 20 == 0 or step == steps:
            log(f"{folder.name}: step {step}/{steps}, loss {loss.item():.3f}")
    with torch.no_grad():
        logits = torch.cat(
            [
                head.logits(base.network(base.normalised(task.pixels[part] / 255), lora))
                for part in torch.split(held, 50)
            ]
        )
    accuracy = float((logits.argmax(1) == task.labels[held]).float().mean())
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    config = write_lora(lora, base, TARGETS, staging)
    weights = staging / "adapter_model.safetensors"
    tensors: dict[str, Tensor] = load_file(weights)
    tensors |= {
        f"{PEFT_PREFIX}classifier.weight": head.weight.detach(),
        f"{PEFT_PREFIX}classifier.bias": head.bias.detach(),
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    (staging / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier"]}, indent=1))
    (staging / "task.json").write_text(json.dumps({"classes": task.classes, "accuracy": accuracy, "steps": steps}))
    staging.rename(folder)
    return accuracy
