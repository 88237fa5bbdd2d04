"""The picture: every method's normalised accuracy on seven tasks with its interval, beside the references."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.quality.candidates import Candidate
from benchmarks.quality.design import KINDS
from benchmarks.quality.table import PLAIN, REFERENCES, Column, subject_of

INK, PALE, PLAIN_SHADE, METHOD_SHADE = "#2b2b2b", "#8a8a8a", "#b5651d", "#6b2d1a"
LINES = {"base": ":", "single": "-.", "joint": "--", "routing": (0, (5, 1)), "exact": (0, (1, 1))}
GROUP = "seven"


def draw(columns: Sequence[Column], merges: Sequence[Candidate], target: Path) -> None:
    """Write the picture: one panel for each kind that has anything on seven tasks."""
    panels = [one for one in columns if one.group == GROUP and one.estimate(PLAIN)]
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": PALE, "text.color": INK, "axes.labelcolor": INK})
    rows = max((len(one.scores) for one in panels), default=1)
    size = (6 * max(1, len(panels)), 1.6 + 0.24 * rows)
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=size, squeeze=False, layout="constrained")
    for axis, one in zip(axes[0], panels, strict=False):
        panel(axis, one, merges)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def panel(axis: Any, shown: Column, merges: Sequence[Candidate]) -> None:
    """One kind: dots with intervals, the best on top; references as vertical lines."""
    found = []
    for candidate in merges:
        estimate = shown.estimate(subject_of(candidate))
        if estimate:
            name = candidate.method if candidate.default else f"{candidate.method}/{candidate.space}"
            found.append((estimate.value, name, estimate, subject_of(candidate) == PLAIN))
    found.sort(key=lambda entry: entry[:2])
    for height, (value, _, estimate, plain) in enumerate(found):
        shade = PLAIN_SHADE if plain else METHOD_SHADE
        axis.plot([100 * estimate.low, 100 * estimate.high], [height, height], color=shade, lw=1.2, alpha=0.6)
        axis.plot(100 * value, height, "o", color=shade, ms=6 if plain else 4.5)
        if plain:
            axis.axhspan(height - 0.5, height + 0.5, color=PLAIN_SHADE, alpha=0.08, lw=0)
    for subject, title in REFERENCES.items():
        estimate = shown.estimate(subject)
        if estimate:
            label = f"{title} {100 * estimate.value:.0f}"
            axis.axvline(100 * estimate.value, color=INK, lw=0.9, ls=LINES[subject], label=label)
    axis.axvline(100, color=PALE, lw=0.8)
    axis.set_yticks(range(len(found)), [name for _, name, _, _ in found])
    axis.set_ylim(-0.7, len(found) - 0.3)
    axis.set_xlabel("normalised accuracy on seven tasks, % (own adapters: 100)")
    axis.set_title(KINDS[shown.kind].title, fontsize=10)
    axis.grid(axis="x", color=PALE, alpha=0.2)
    axis.tick_params(axis="y", length=0)
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, frameon=False)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
