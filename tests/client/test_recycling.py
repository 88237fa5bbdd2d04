"""Recycling from Python and from the shell: push with a head, consent, distil, predict from folders of images."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.client import Client, SpoliaError
from merging.recycle.head import Head, head_bytes
from merging.recycle.lora import new_lora, write_lora
from merging.recycle.randomness import generator
from merging.recycle.vision_base import VisionBase
from tests.client.test_cli import Shell
from tests.merging.recycle.teachers import TEST
from tests.merging.recycle.textures import textures

TINY = {
    "image_px": 28, "images_per_class": 2, "calibration": 4,
    "inversion": {"steps": 3, "batch": 6},
    "meta": {"iterations": 4, "cycle": 4, "warmup": 1, "queries": 1, "ways": 2},
}  # fmt: skip


@pytest.fixture
def folders(bundled: VisionBase, tmp_path: Path) -> list[Path]:
    """Two adapters with heads as somebody has them on disk; nobody trained them."""
    made = []
    for number in range(2):
        rng = generator(number, "client")
        lora = new_lora(bundled, ("q_proj",), 2, rng)
        for factors in lora.values():
            torch.nn.init.normal_(factors.B, std=0.02, generator=rng)
        head = Head(torch.randn(3, bundled.width, generator=rng), torch.zeros(3))
        folder = tmp_path / f"adapter-{number}"
        config = write_lora(lora, bundled, ("q_proj",), folder)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "head.safetensors").write_bytes(head_bytes(head, ("ant", "bee", "cow") if number else ()))
        made.append(folder)
    return made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """support/CLASS/n.png and query/n.png: three kinds of texture."""
    pixels, labels = textures(TEST[:3], 4, 28, generator(2, "client"))
    for index, (image, label) in enumerate(zip((pixels * 255).round().to(torch.uint8), labels.tolist(), strict=True)):
        folder = tmp_path / "images" / ("query" if index % 4 == 3 else f"support/kind-{label}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_from_adapters_on_disk_to_predictions(
    spolia: Client, address: str, folders: list[Path], images: Path, tmp_path: Path
) -> None:
    shell = Shell(address)
    first = shell.json("push", folders[0], "shop/zero", "--classes", "ant,bee,cow")
    assert first["head"]["names"] == ["ant", "bee", "cow"]
    assert spolia.push(folders[1], "shop/one")["head"]["names"] == ["ant", "bee", "cow"]
    with pytest.raises(SpoliaError, match="shop/zero@1, shop/one@1") as refused:
        spolia.distil("shop/meta", ["shop/zero", "shop/one"], profile="small", params=TINY)
    assert refused.value.slug == "consent-missing"
    assert "Inversion is allowed; its images are kept" in shell.text(
        "consent", "shop/zero", "--inversion", "--show-surrogates"
    )
    spolia.set_consent("shop/one", inversion=True)
    seen: list[tuple[int, int]] = []
    job = spolia.distil(
        "shop/meta", ["shop/zero", "shop/one"], profile="small", params=TINY,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert job["result"]["ref"] == "shop/meta@1"
    assert seen[-1] == (1 + 6 + 4, 1 + 6 + 4)
    words = ["--profile", "small", *(f"--param={name}={value}" for name, value in flat(TINY))]
    assert "distilled before: shop/meta@1" in shell.text("distil", "shop/meta", "shop/zero", "shop/one", *words)
    (kept,) = spolia.surrogates("shop/zero")
    sheet = Image.open(io.BytesIO(spolia.save_surrogates("shop/zero", kept["id"], tmp_path / "a.png").read_bytes()))
    assert sheet.size == (2 * 30 + 2, 3 * 30 + 2)

    answer = spolia.predict(images / "support", images / "query", model="shop/meta")
    assert [one["file"] for one in answer["predictions"]] == ["11.png", "3.png", "7.png"]
    assert answer["classes"] == ["kind-0", "kind-1", "kind-2"]
    told = shell.json(
        "predict", "shop/zero=2", "shop/one", "--ensemble", "--px", 28,
        "--support", images / "support", "--query", images / "query",
    )  # fmt: skip
    assert [one["weight"] for one in told["adapters"]] == [2, 1]
    assert told["predictions"][0]["uncertainty"]["mutual_information"] >= 0
    with pytest.raises(SpoliaError, match="no images in folders"):
        spolia.predict(images / "query", images / "query")
    assert [base["modality"] for base in spolia.bases()] == ["text", "image"]


def flat(params: dict[str, object]) -> list[tuple[str, object]]:
    """Nested parameters as the shell writes them."""
    found: list[tuple[str, object]] = []
    for name, value in params.items():
        found += (
            [(f"{name}.{leaf}", own) for leaf, own in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return found
