"""What tests of recycling over HTTP share: trained teachers on the service, images of textures as PNG files."""

import io
from pathlib import Path

import torch
from PIL import Image

from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.vision_base import VisionBase
from tests.app.service import Service
from tests.merging.recycle.teachers import TEST, train_teacher, write_teacher
from tests.merging.recycle.textures import textures


def upload_teacher(service: Service, base: VisionBase, number: int, folder: Path, *, apart: bool) -> Source:
    """A trained teacher, which is `seen/teacher-N` on the service; its owner has allowed nothing yet."""
    source = train_teacher(base, number, steps=4, px=28)
    service.push(f"seen/teacher-{number}", write_teacher(source, base, folder, apart=apart))
    return source


def allow(service: Service, name: str, *, inversion: bool = True, show: bool = False) -> None:
    """The owner of seen/NAME says what is allowed."""
    body = {"inversion": inversion, "show_surrogates": show}
    assert service.http.put(f"/v1/adapters/seen/{name}/consent", json=body).status_code == 200


def unseen_images(ways: int, each: int, px: int = 64) -> tuple[list[bytes], list[int]]:
    """PNGs of textures that no teacher saw, with labels."""
    pixels, labels = textures(TEST[:ways], each, px, generator(1, "unseen"))
    files = []
    for image in (pixels * 255).round().to(torch.uint8):
        held = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(held, "PNG")
        files.append(held.getvalue())
    return files, labels.tolist()
