"""All surrogate images of one source on one PNG: a class in each row."""

import io
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

GAP_PX = 2


def contact_sheet(path: Path) -> bytes:
    """The PNG of a file with `images` (uint8 [N, 3, px, px]) and `labels` [N]; white between them."""
    held = load_file(path)
    images, labels = held["images"], held["labels"]
    rows = [images[labels == label] for label in sorted(set(labels.tolist()))]
    step = images.shape[-1] + GAP_PX
    sheet = torch.full((3, len(rows) * step + GAP_PX, max(map(len, rows)) * step + GAP_PX), 255, dtype=torch.uint8)
    for row, members in enumerate(rows):
        for column, image in enumerate(members):
            top, left = GAP_PX + row * step, GAP_PX + column * step
            sheet[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    target = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(target, "PNG")
    return target.getvalue()
