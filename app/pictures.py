"""Images as people send them, as pixels that the vision base takes: PNG, JPEG or WebP of any size, through Pillow.

The header is read first, and an image with more pixels than allowed is refused before any is decoded. The shorter side
is resized, and a square is cut from the middle, as transformers' image processors do: by the base's own
`preprocessor_config.json` where it says how, else bicubic with a margin of an eighth (256 for 224, as DINOv2 was shown
images). Transparent parts become white.
"""

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from app.problems import Refusal

FORMATS = ("PNG", "JPEG", "WEBP")
BICUBIC = 3  # Pillow's and transformers' number
MARGIN = 256 / 224
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


@dataclass(frozen=True, slots=True)
class Resizing:
    """How a base wants images resized: the shorter side to `margin` times the square that is then cut out."""

    margin: float = MARGIN
    resample: int = BICUBIC

    @classmethod
    def of(cls, folder: Path) -> "Resizing":
        """As a base's folder says, as far as it does."""
        file = folder / "preprocessor_config.json"
        said: Mapping[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        shorter, cut = _side(said.get("size")), _side(said.get("crop_size"))
        margin = MARGIN if shorter is None else 1.0
        if shorter and cut and said.get("do_center_crop", True):
            margin = max(1.0, shorter / cut)
        resample = said.get("resample", BICUBIC)
        return cls(margin, resample if resample in set(Image.Resampling) else BICUBIC)


def _side(size: object) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) and size > 0 else None


def read_picture(data: bytes, where: str, px: int, most_pixels: int, resizing: Resizing) -> Tensor:
    """One image as uint8 [3, px, px]; `where` says which one it is.

    Raises:
        Refusal: no such image, too large, or broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large image is refused by our own limit, below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > most_pixels:
                detail = f"{where} has {width}x{height} pixels; at most {most_pixels} are decoded."
                raise Refusal(413, "image-too-large", detail, field=where, limit_pixels=most_pixels)
            image.draft("RGB", (round(px * resizing.margin), round(px * resizing.margin)))  # JPEG: decode it smaller
            image.load()
            return _square(ImageOps.exif_transpose(image), px, resizing)
    except Refusal:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, met before ours can be asked
        detail = f"{where} is larger than the {most_pixels} pixels that are decoded."
        raise Refusal(413, "image-too-large", detail, field=where, limit_pixels=most_pixels) from None
    except UnidentifiedImageError:
        raise Refusal(422, "bad-image", f"{where} is no PNG, JPEG or WebP image.", field=where) from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        detail = f"{where} cannot be decoded ({type(error).__name__}: {str(error)[:120]})."
        raise Refusal(422, "bad-image", detail, field=where) from None


def _square(image: Image.Image, px: int, resizing: Resizing) -> Tensor:
    image = _coloured(image)
    width, height = image.size
    scale = px * resizing.margin / min(width, height)
    size = (max(px, round(width * scale)), max(px, round(height * scale)))
    left, top = (size[0] - px) // 2, (size[1] - px) // 2
    # Only what stays is resized: a margin of the original that is cut off anyway, or a very long side, costs nothing.
    across, down = width / size[0], height / size[1]
    box = (left * across, top * down, (left + px) * across, (top + px) * down)
    cut = image.resize((px, px), Image.Resampling(resizing.resample), box=box)
    return torch.from_numpy(numpy.asarray(cut).copy()).permute(2, 0, 1)


def _coloured(image: Image.Image) -> Image.Image:
    """In RGB: sixteen bits become eight, transparency becomes white."""
    if image.mode in WIDE_MODES:
        wide = numpy.asarray(image).astype(numpy.float32)
        return Image.fromarray((wide / 257).clip(0, 255).round().astype(numpy.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
