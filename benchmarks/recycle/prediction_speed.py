"""How long a few-shot prediction takes over HTTP, and what bfloat16 costs in accuracy.

25 labelled images and 75 queries of 112 pixels go to a service as one multipart request (PNG files), with one adapter;
warm: the base is in memory and the adapter folded in. Each precision and number of threads has a service of its own.
Processor time of the service is shown too: on a machine that does other work it says more than the clock. Accuracy:
600 tasks of unseen emoji subgroups, the same tasks in both precisions, embeddings as the service makes them.

    python -m benchmarks.recycle.prediction_speed [--repeats 7] [--folder DIR]

Prints a table and writes benchmarks/results/recycle_prediction_speed.json.
"""

import io
import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measuring import machine, summary, write_results
from benchmarks.recycle.images import read_images
from benchmarks.recycle.tasks import split_classes
from benchmarks.recycle.workplace import options, vision_base
from benchmarks.serving.servers import spolia
from merging.recycle.evaluate import few_shot_accuracy
from merging.recycle.folding import folded
from merging.recycle.lora import new_lora, write_lora
from merging.recycle.randomness import generator
from merging.recycle.vision_base import VisionBase

PX, WAYS, SUPPORT, QUERIES = 112, 5, 25, 75
PRECISIONS, THREADS = ("float32", "bfloat16"), (1, 2)


def adapter(base: VisionBase, folder: Path) -> Path:
    """A LoRA of rank 4 on q and v whose numbers are random: what it says is of no matter here."""
    lora = new_lora(base, ("q_proj", "v_proj"), 4, generator(0, "speed"))
    for factors in lora.values():
        torch.nn.init.normal_(factors.B, std=0.01, generator=generator(1, "speed"))
    config = write_lora(lora, base, ("q_proj", "v_proj"), folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def png(pixels: Tensor) -> bytes:
    """An image [3, px, px] of bytes as a file."""
    held = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(held, "PNG")
    return held.getvalue()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(folder: Path, pixels: Tensor, precision: str, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of one request after another on a service of its own."""
    files = [png(image) for image in pixels[: SUPPORT + QUERIES]]
    parts = [("support", (f"kind-{i % WAYS}/{i}.png", data)) for i, data in enumerate(files[:SUPPORT])]
    parts += [("query", (f"{i}.png", data)) for i, data in enumerate(files[SUPPORT:])]
    with tempfile.TemporaryDirectory() as data:
        settings = {"PREDICTION_PRECISION": precision}
        with (
            spolia(Path(data), threads=threads, settings=settings) as server,
            httpx.Client(base_url=server.url, timeout=300) as http,
        ):
            upload = {
                "config": (folder / "adapter_config.json").read_bytes(),
                "weights": (folder / "adapter_model.safetensors").read_bytes(),
            }
            http.post("/v1/adapters/me/one/versions", files=upload).raise_for_status()
            seconds, busy = [], []
            for _ in range(1 + repeats):
                began, used = time.perf_counter(), cpu_seconds(server.pid)
                answer = http.post("/v1/predictions", files=parts, data={"model": "me/one", "px": str(PX)})
                seconds.append(time.perf_counter() - began)
                busy.append(cpu_seconds(server.pid) - used)
                answer.raise_for_status()
            return {"first_s": seconds[0], "cpu": summary(busy[1:]), **summary(seconds[1:])}


def accuracy(base: VisionBase, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    """The bare base at 1 and 5 shots in each precision, and how often both give an image the same nearest neighbour."""
    found, embedded = {}, {}
    for precision in PRECISIONS:
        network = folded(base.network.to(getattr(torch, precision)), base.network, {})
        with torch.inference_mode():
            parts = [network(base.normalised(part / 255)).embedding for part in torch.split(pixels, 64)]
        embedded[precision] = torch.cat(parts).float()
        for shots in (1, 5):
            result = few_shot_accuracy(embedded[precision], labels, shots=shots, rng=generator(0, "speed", shots))
            found[f"{precision}, {shots}-shot"] = {"mean": result.mean, "interval": result.interval}
    nearest = [
        torch.cdist(one, one).fill_diagonal_(float("inf")).argmin(1) for one in (embedded[name] for name in PRECISIONS)
    ]
    return {**found, "same nearest neighbour": float((nearest[0] == nearest[1]).float().mean())}


def main() -> None:
    """Time every setting, measure the cost, print and write."""
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="of each setting (default: %(default)s)")
    asked = parser.parse_args()
    base = vision_base(asked.folder)
    emoji = read_images("emoji", PX, asked.folder)
    unseen = emoji.only(set(split_classes(emoji.classes, 0).test))
    times = {}
    with tempfile.TemporaryDirectory() as place:
        folder = adapter(base, Path(place))
        for precision, threads in product(PRECISIONS, THREADS):
            name = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            times[name] = timed(folder, unseen.pixels, precision, threads, asked.repeats)
            row = times[name]
            span = f"({row['least']:.2f} to {row['most']:.2f})"
            print(f"{name:<22} {row['median']:6.2f} s {span}, {row['cpu']['median']:.2f} s of processor", flush=True)
    cost = accuracy(base, unseen.pixels, unseen.labels)
    for name, value in cost.items():
        print(f"{name:<26} {value if isinstance(value, float) else value['mean']:.4f}")
    write_results("recycle_prediction_speed", {"machine": machine(max(THREADS)), "seconds": times, "accuracy": cost})


if __name__ == "__main__":
    main()
