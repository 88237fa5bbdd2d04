"""Teachers trained in seconds: a LoRA and a head on five kinds of texture, and classes that none of them sees."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from deltas.factors import Factors
from merging.recycle.head import head_bytes
from merging.recycle.lora import PEFT_PREFIX, new_lora, write_lora
from merging.recycle.randomness import generator
from merging.recycle.source import Head, Source
from merging.recycle.vision_base import VisionBase
from tests.merging.recycle.textures import CLASSES, textures

PX, WAYS = 42, 5
ORDER = torch.randperm(len(CLASSES), generator=generator(0, "classes")).tolist()
TRAINING, TEST = ORDER[:10], ORDER[10:]


def train_teacher(base: VisionBase, number: int, steps: int = 10, px: int = PX) -> Source:
    """A LoRA and a head on five classes, by Adam."""
    rng = generator(0, "teacher", number)
    classes = [TRAINING[i] for i in torch.randperm(len(TRAINING), generator=rng)[:WAYS].tolist()]
    pixels, labels = textures(classes, 12, px, rng)
    images = base.normalised(pixels)
    lora = new_lora(base, ("q_proj", "v_proj"), 4, rng)
    head = Head(torch.zeros(WAYS, base.width, requires_grad=True), torch.zeros(WAYS, requires_grad=True))
    weights = [side for f in lora.values() for side in (f.A, f.B)] + [head.weight, head.bias]
    optimiser = torch.optim.Adam(weights, lr=5e-3)
    for _ in range(steps):
        batch = torch.randperm(len(images), generator=rng)[:20]
        loss = F.cross_entropy(head.logits(base.network(images[batch], lora)), labels[batch])
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        optimiser.step()
    finished = {name: Factors(f.A.detach(), f.B.detach()) for name, f in lora.items()}
    names = tuple(" ".join(map(str, CLASSES[one])) for one in classes)
    return Source(f"me/teacher-{number}@1", finished, Head(head.weight.detach(), head.bias.detach()), names)


def write_teacher(source: Source, base: VisionBase, folder: Path, *, apart: bool) -> Path:
    """The folder that somebody would upload: the head in a file of its own, with its classes' names, or saved whole
    with the adapter."""
    config = write_lora(source.lora, base, ("q_proj", "v_proj"), folder)
    if apart:
        (folder / "head.safetensors").write_bytes(head_bytes(source.head, source.classes))
    else:
        weights = folder / "adapter_model.safetensors"
        head = {"weight": source.head.weight, "bias": source.head.bias}
        own = {f"{PEFT_PREFIX}classifier.{name}": tensor for name, tensor in head.items()}
        save_file({**load_file(weights), **own}, weights, metadata={"format": "pt"})
        config["modules_to_save"] = ["classifier"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
