"""Draws docs/speed.png from benchmarks/results/merge_scale-curves.json: time and memory against sources, rank, width.

python -m benchmarks.scale_picture
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.measuring import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "speed.png"
SHADES = {"sum": "#2f1b12", "ties": "#b5651d", "lego": "#3b6e6a", "tsv_m": "#8a6fa8"}
ROWS = {"seconds": "seconds", "memory_mb": "memory beyond the interpreter, MB"}


def draw(document: dict[str, Any]) -> None:
    fixed, curves, exponents = document["fixed"], document["curves"], document["exponents"]
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharey="row")
    for column, (quantity, found) in enumerate(curves.items()):
        for row, (what, label) in enumerate(ROWS.items()):
            axis = axes[row, column]
            for name, points in found.items():
                values = sorted(int(v) for v in points)
                slope = exponents[quantity][name][what]
                heights = [points[str(v)][what] for v in values]
                axis.plot(values, heights, "o-", ms=4, color=SHADES[name], label=f"{name}  ~ {quantity}^{slope:.1f}")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(values, [str(v) for v in values])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.legend(fontsize=8, frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
            if row == 1:
                axis.set_xlabel(quantity)
        rest = ", ".join(f"{name} {value}" for name, value in fixed.items() if name != quantity)
        axes[0, column].set_title(f"against {quantity} ({rest})", fontsize=10)
    figure.tight_layout()
    figure.savefig(TARGET, dpi=130)


if __name__ == "__main__":
    draw(json.loads((RESULTS / "merge_scale-curves.json").read_text()))
    print(f"written to {TARGET}")
