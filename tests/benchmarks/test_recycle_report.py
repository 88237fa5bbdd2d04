"""The page on Recycle says what was measured, and what was not."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.recycle.report import draw, page, table


def row(candidate: str, name: str, shots: int, mean: float) -> dict[str, object]:
    return {
        "sources": "emoji-84-60-0", "count": 30, "candidate": candidate, "set": name, "shots": shots,
        "mean": mean, "interval": 0.0085, "episodes": 600,
    }  # fmt: skip


def test_a_table_has_what_was_measured_and_dashes() -> None:
    rows = [row("base", "emoji", 1, 0.5), row("base", "cifar", 1, 0.4), row("recycle-75", "emoji", 1, 0.56789)]
    assert table(rows, 1).splitlines() == [
        "| 1-shot | emoji | cifar |",
        "| --- | --- | --- |",
        "| base | 50.0 ± 0.9 | 40.0 ± 0.9 |",
        "| recycle-75 | 56.8 ± 0.9 | – |",
    ]
    whole = page(rows, pictured=False)
    assert "## 30 sources: emoji, 84 pixels, 60 steps each, seed 0" in whole
    assert "recycle.png" not in whole
    assert "Nothing is measured yet." in page([], pictured=False)


def test_the_picture_is_drawn_where_there_are_images(tmp_path: Path) -> None:
    assert not draw(tmp_path, tmp_path / "none.png")
    (tmp_path / "recycle-0").mkdir()
    save_file({"inputs": torch.randn(10, 3, 14, 14)}, tmp_path / "recycle-0" / "inversion-000-00.safetensors")
    assert draw(tmp_path, tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 1000
