"""Find, convert and load a vision base: a folder as text bases have one, with config.json, safetensors weights, the
pixels' mean and standard deviation (preprocessor_config.json) and a card.

    python -m merging.recycle.vision_base --target DIR [--name FOLDER] [--search DIR ...]

Any folder of a transformers `Dinov2Model` or `Dinov2ForImageClassification` will do. The default comes with the
installation (`bundled_vision.py`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deltas.base_folder import CARD, fingerprint, folder_name, publish_folder, read_card, write_card
from merging.recycle.bundled_vision import BUNDLED_NAME, bundled_onnx, bundled_origin, convert_onnx
from merging.recycle.errors import VisionBaseUnavailable, VisionBaseUnsupported
from merging.recycle.vit import Sizes, VisionTransformer

DEFAULT_VISION_BASE = BUNDLED_NAME
PREPROCESSOR = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREFIX = "dinov2."  # of a classifier's file
# Names in files of earlier transformers, which today's reads as well.
RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
_FINGERPRINTED = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "patch_size",
                  "image_size", "num_channels", "hidden_act", "layer_norm_eps")  # fmt: skip


@dataclass(frozen=True, slots=True)
class VisionInfo:
    """What can be known of a vision base without loading it. `modules`: its linear layers with (out, in)."""

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    sizes: Sizes
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class VisionBase:
    """A loaded vision base. `modules`: its linear layers with (out, in); `mean`, `std` [C]: what pixels from 0 to 1 are
    normalised by."""

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    mean: Tensor
    std: Tensor
    folder: Path
    network: VisionTransformer = field(repr=False)

    @property
    def width(self) -> int:
        return self.network.sizes.width

    @property
    def info(self) -> VisionInfo:
        """What `vision_info` reads from the same folder."""
        return VisionInfo(self.name, self.fingerprint, self.modules, self.network.sizes, self.folder)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1 [N, C, height, width] as the network takes them, in float32."""
        return (pixels.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def pixels(self, images: Tensor) -> Tensor:
        """What `normalised` was given."""
        return images * self.std[:, None, None] + self.mean[:, None, None]

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest values [C, 1, 1] that normalised pixels can have."""
        zero, one = torch.zeros_like(self.mean), torch.ones_like(self.mean)
        return ((zero - self.mean) / self.std)[:, None, None], ((one - self.mean) / self.std)[:, None, None]


def ensure_vision_base(name: str, search: Sequence[Path], target: Path) -> Path:
    """The folder of vision base `name`; made below `target` when no folder in `search` has it.

    `name` is the bundled one's or a path to a transformers folder; a plain folder is linked, not copied.
    Raises VisionBaseUnavailable, VisionBaseUnsupported.
    """
    plain = Path(name) if Path(name).is_dir() else None
    for place in (*search, target):
        candidate = place / folder_name(name)
        if (candidate / CARD).is_file() and read_card(candidate)["name"] == name:
            return candidate
        if plain is None and (candidate / "config.json").is_file() and not (candidate / CARD).exists():
            plain = candidate
    onnx = None if plain else bundled_onnx(name)
    if plain is None and onnx is None:
        raise VisionBaseUnavailable(name, [*search, target])
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".making-", dir=target))
    try:
        if onnx is not None:
            convert_onnx(onnx, staging)
            origin = bundled_origin(onnx)
        else:
            assert plain is not None
            for file in sorted(plain.resolve().iterdir()):
                if file.is_file():
                    (staging / file.name).symlink_to(file)
            origin = str(plain.resolve())
        write_card(staging, _card(name, origin, staging))
        return publish_folder(staging, target / folder_name(name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def vision_info(folder: Path) -> VisionInfo:
    """What can be known of a vision base from its folder's small files. Raises VisionBaseUnsupported."""
    card = read_card(folder)
    try:
        sizes = Sizes.of(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise VisionBaseUnsupported(card["name"], f"its config.json cannot be read ({error})") from error
    modules = {module: (shape[0], shape[1]) for module, shape in card["modules"].items()}
    return VisionInfo(card["name"], card["fingerprint"], modules, sizes, folder)


def own_name(module: str) -> str:
    """The base's name of a module, as an adapter calls it: below `dinov2.` in a classifier, or as earlier transformers
    named it.

    >>> own_name("dinov2.encoder.layer.0.attention.attention.query")
    'encoder.layer.0.attention.q_proj'
    """
    module = module.removeprefix(PREFIX)
    for old, new in RENAMED:
        module = module.replace(old, new)
    return module


def adapted_names(modules: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Every name that adapters may have for these modules, which `own_name` leads back."""
    found: dict[str, tuple[int, int]] = {}
    for name, shape in modules.items():
        earlier = name
        for old, new in RENAMED:
            earlier = earlier.replace(new, old)
        found |= dict.fromkeys((name, earlier, f"{PREFIX}{name}", f"{PREFIX}{earlier}"), shape)
    return found


def load_vision_base(folder: Path, *, device: str = "cpu") -> VisionBase:
    """Load a folder made by `ensure_vision_base`, its network in float32 on `device`. Raises VisionBaseUnsupported."""
    card = read_card(folder)
    config, weights = _read(card["name"], folder)
    preprocessor = folder / PREPROCESSOR
    pixels: dict[str, Any] = json.loads(preprocessor.read_text("utf-8")) if preprocessor.is_file() else {}
    return VisionBase(
        name=card["name"],
        fingerprint=card["fingerprint"],
        modules={module: (shape[0], shape[1]) for module, shape in card["modules"].items()},
        mean=torch.tensor(pixels.get("image_mean", IMAGENET_MEAN)),
        std=torch.tensor(pixels.get("image_std", IMAGENET_STD)),
        folder=folder,
        network=VisionTransformer(
            Sizes.of(config), {name: weight.float().to(device) for name, weight in weights.items()}
        ),
    )


def _card(name: str, origin: str, folder: Path) -> dict[str, Any]:
    config, weights = _read(name, folder)
    known = {field: config[field] for field in _FINGERPRINTED if field in config}
    matrices = {
        key.removesuffix(".weight"): weight for key, weight in sorted(weights.items()) if _is_linear(key, weight)
    }
    sizes = Sizes.of(config)
    return {
        "name": name,
        "origin": origin,
        "fingerprint": fingerprint(known, weights.items(), folder / PREPROCESSOR),
        "architecture": "Dinov2Model",
        "modality": "image",
        "parameters": sum(weight.numel() for weight in weights.values()),
        "patch_px": sizes.patch_px,
        "width": sizes.width,
        "blocks": sizes.blocks,
        "modules": {module: list(weight.shape) for module, weight in matrices.items()},
        "embeddings": {},
        "experts": {},
    }


def _is_linear(key: str, weight: Tensor) -> bool:
    return key.startswith("encoder.") and key.endswith(".weight") and weight.ndim == 2


def _read(name: str, folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Config and weights under today's names, checked for what the network needs. Raises VisionBaseUnsupported."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        stored = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise VisionBaseUnsupported(name, f"its folder cannot be read ({error})") from error
    if config.get("model_type") != "dinov2":
        raise VisionBaseUnsupported(name, f"it is a '{config.get('model_type')}' model; known is 'dinov2'")
    if config.get("use_swiglu_ffn") or config.get("hidden_act", "gelu") != "gelu":
        raise VisionBaseUnsupported(name, "its blocks end in another MLP than two layers with GELU between")
    weights = {}
    for key, weight in stored.items():
        key = own_name(key)
        if not key.startswith("classifier.") and key != "embeddings.mask_token":
            weights[key] = weight
    try:
        needed = expected_weights(Sizes.of(config))
    except (KeyError, TypeError, ValueError) as error:
        raise VisionBaseUnsupported(name, f"its config.json lacks or garbles {error}") from error
    for key, shape in needed.items():
        if key not in weights or tuple(weights[key].shape) != shape:
            found = list(weights[key].shape) if key in weights else "nothing"
            raise VisionBaseUnsupported(name, f"tensor '{key}' must have shape {list(shape)}, found {found}")
    return config, {key: weights[key] for key in needed}


def expected_weights(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network with its shape."""
    width, side = sizes.width, sizes.trained_px // sizes.patch_px
    patch = (sizes.channels, sizes.patch_px, sizes.patch_px)
    found: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + side * side, width),
        "embeddings.patch_embeddings.projection.weight": (width, *patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    linears = {f"attention.{part}_proj": (width, width) for part in "qkvo"}
    linears |= {"mlp.fc1": (sizes.hidden, width), "mlp.fc2": (width, sizes.hidden)}
    for block in range(sizes.blocks):
        path = f"encoder.layer.{block}"
        for name, shape in linears.items():
            found |= {f"{path}.{name}.weight": shape, f"{path}.{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            found |= {f"{path}.{norm}.weight": (width,), f"{path}.{norm}.bias": (width,)}
        found |= {f"{path}.layer_scale1.lambda1": (width,), f"{path}.layer_scale2.lambda1": (width,)}
    return found | {"layernorm.weight": (width,), "layernorm.bias": (width,)}


def main() -> None:
    """Make the folder of a vision base and print its path."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--target", type=Path, required=True, help="folder in which base models are kept")
    parser.add_argument("--name", default=DEFAULT_VISION_BASE, help="the bundled base, or a transformers folder")
    parser.add_argument("--search", type=Path, nargs="*", default=[], help="folders to look into first")
    options = parser.parse_args()
    sys.stdout.write(f"{ensure_vision_base(options.name, options.search, options.target)}\n")


if __name__ == "__main__":
    main()
