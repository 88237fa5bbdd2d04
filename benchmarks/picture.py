"""The README's picture: how the example adapters overlap, and what LoRA-LEGO makes of their ranks.

Left: cosine between the adapters' updates over the modules that two of them share, and below the diagonal the sign
agreement of their cores. Right: LoRA-LEGO at the largest source rank, layer by layer: how many clusters hold pieces
of one source, of two, of more. All of it is read from the report that a merge returns.

    python -m benchmarks.picture      # writes docs/overlap.png
"""

import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from deltas.adapter import Adapter
from merging.engine import run_merge
from merging.planning import plan_merge
from merging.recipe import Recipe

ROOT = Path(__file__).parents[1]
INK, PALE = "#2b2b2b", "#8a8a8a"
SHADES = ["#c9b79c", "#b5651d", "#6b2d1a", "#2f1b12"]  # one source, two, three, four and more


def report(folders: list[Path], method: str) -> dict[str, Any]:
    adapters = [Adapter.open(f / "adapter_config.json", f / "adapter_model.safetensors") for f in folders]
    recipe = Recipe.model_validate({"sources": [{"ref": f"examples/{f.name}"} for f in folders], "method": method})
    with tempfile.TemporaryDirectory() as work:
        return run_merge(plan_merge(recipe, adapters), Path(work), workers=2).report


def draw_overlap(axis: Any, names: list[str], totals: dict[str, Any]) -> None:
    cosine = np.array(totals["interference"]["cosine"], dtype=float)
    signs = np.array(
        [[np.nan if v is None else v for v in row] for row in totals["interference"]["sign_agreement"]], dtype=float
    )
    count = len(names)
    shown = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(count):
            if i < j:
                shown[i, j] = cosine[i, j]
            elif i > j:
                shown[i, j] = 2 * signs[i, j] - 1  # chance, one half, is zero
    limit = max(0.02, float(np.nanmax(np.abs(shown))))
    axis.imshow(shown, cmap="BrBG", vmin=-limit, vmax=limit)
    for i in range(count):
        for j in range(count):
            if i != j and not np.isnan(shown[i, j]):
                text = f"{100 * cosine[i, j]:+.1f}" if i < j else f"{100 * signs[i, j]:.0f}"
                shade = "white" if abs(shown[i, j]) > 0.7 * limit else INK
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color=shade)
    axis.set_xticks(range(count), names, rotation=35, ha="right")
    axis.set_yticks(range(count), names)
    axis.set_title(
        "How the adapters overlap, %\nabove: cosine of updates · below: sign agreement of cores", fontsize=10
    )
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def draw_clusters(axis: Any, modules: list[dict[str, Any]]) -> None:
    layers: dict[int, list[int]] = {}
    for module in modules:
        found = [int(part) for part in module["name"].split(".") if part.isdigit()]
        counts = layers.setdefault(found[0], [0, 0, 0, 0])
        for members in module["members_by_source"]:
            counts[min(sum(m > 0 for m in members), 4) - 1] += 1
    depth = sorted(layers)
    stacked = np.array([layers[d] for d in depth], dtype=float)
    stacked = 100 * stacked / stacked.sum(axis=1, keepdims=True)
    base = np.zeros(len(depth))
    for column, (shade, label) in enumerate(zip(SHADES, ["one source", "two", "three", "four or more"], strict=True)):
        axis.bar(depth, stacked[:, column], 0.9, bottom=base, color=shade, label=label)
        base += stacked[:, column]
    axis.set_xlabel("layer")
    axis.set_ylabel("clusters, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(min(depth) - 0.6, max(depth) + 0.6)
    axis.set_title("What LoRA-LEGO made of their ranks\neach cluster is one rank; it holds pieces of …", fontsize=10)
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def main() -> None:
    folders = sorted(p.parent for p in (ROOT / "examples" / "adapters").glob("*/adapter_config.json"))
    found = report(folders, "lego")
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": PALE, "text.color": INK, "axes.labelcolor": INK})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.9), width_ratios=[1, 1.25], layout="constrained")
    draw_overlap(left, [f.name for f in folders], found["totals"])
    draw_clusters(right, found["modules"])
    target = ROOT / "docs" / "overlap.png"
    figure.savefig(target, dpi=130)
    print(f"written to {target}")


if __name__ == "__main__":
    main()
