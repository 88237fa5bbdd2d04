"""Images of every kind as pixels, held against what transformers' own processor makes of them."""

import io
import zlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BitImageProcessor

from app.pictures import Resizing, read_picture
from app.problems import Refusal


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture: resizing is compared, not aliasing."""
    rng = numpy.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def packed(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def read(data: bytes, px: int = 56, most: int = 10**6, margin: float = 256 / 224) -> torch.Tensor:
    return read_picture(data, "Image", px, most, Resizing(margin))


@given(st.integers(20, 200), st.integers(20, 200))
@settings(max_examples=20)
def test_resizing_and_cutting_is_the_processors(width: int, height: int) -> None:
    """transformers resizes the shorter side, rounds the longer one, and cuts; here it is one step."""
    image = picture(width, height)
    processor = BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3, do_normalize=False,
        do_rescale=False,
    )  # fmt: skip
    wanted = torch.tensor(processor(image, return_tensors="np")["pixel_values"][0]).float()
    found = read(packed(image)).float()
    assert found.shape == wanted.shape == (3, 56, 56)
    assert float((found - wanted).abs().mean()) < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats_agree(kind: str) -> None:
    image = picture(90, 70)
    options = {} if kind == "PNG" else {"quality": 95}
    difference = read(packed(image, kind, **options)).float() - read(packed(image)).float()
    assert float(difference.abs().mean()) < 4


def test_colours_of_every_mode() -> None:
    grey = Image.fromarray(numpy.full((60, 60), 100, numpy.uint8))
    assert read(packed(grey)).unique().tolist() == [100]
    assert read(packed(grey.convert("1").convert("P"))).shape == (3, 56, 56)
    wide = Image.fromarray(numpy.full((60, 60), 100 * 257, numpy.uint16))
    assert read(packed(wide)).unique().tolist() == [100]
    clear = Image.new("RGBA", (60, 60), (10, 20, 30, 0))
    assert read(packed(clear)).unique().tolist() == [255], "what is transparent is white"
    turned = picture(80, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = read(packed(turned.transpose(Image.Transpose.ROTATE_270)), margin=1)
    marked = read(packed(turned, "PNG", exif=exif), margin=1)
    assert torch.equal(marked, upright)


def test_what_is_no_picture_is_refused() -> None:
    whole = packed(picture(64, 64))
    for data, slug in ((b"", "bad-image"), (b"BM" + whole, "bad-image"), (whole[: len(whole) // 2], "bad-image")):
        with pytest.raises(Refusal) as refused:
            read(data)
        assert (refused.value.status, refused.value.slug) == (422, slug)
    with pytest.raises(Refusal, match="2000x1000") as refused:
        read(packed(Image.new("1", (2000, 1000))))
    assert refused.value.status == 413
    claims = bytearray(whole)  # 60000 by 60000, in a header of 33 bytes
    claims[16:24] = (60_000).to_bytes(4, "big") * 2
    claims[29:33] = zlib.crc32(claims[12:29]).to_bytes(4, "big")
    with pytest.raises(Refusal) as refused:
        read(bytes(claims))
    assert refused.value.status == 413


def test_a_very_long_picture_costs_no_more_than_its_middle() -> None:
    assert read(packed(Image.new("L", (9_000, 3), 7)), most=30_000).unique().tolist() == [7]
