"""How far real images are from what is expected of features: R of eq. 2, for each origin of the expected statistics.

    python -m benchmarks.recycle.statistics_distance [--folder DIR]

Expected statistics come from generated images (dead leaves, things on a plain ground), as a distillation takes them, or
from the images that six sources were trained on (`own`). R is of batches as inversion has them: for each of these
sources as many of its own images, and as many photographs and stamps. Rows in `results/statistics.jsonl`.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from benchmarks.recycle.__main__ import read_sources
from benchmarks.recycle.candidates import profile
from benchmarks.recycle.images import read_images
from benchmarks.recycle.teaching import own_images
from benchmarks.recycle.workplace import options, vision_base
from merging.recycle.randomness import generator
from merging.recycle.statistics import expected_moments, feature_distance, feature_moments

RESULTS = Path(__file__).parent / "results" / "statistics.jsonl"
COUNT = 6  # sources


def main() -> None:
    """Measure and write all rows anew."""
    parser = options(__doc__, RESULTS)
    parser.add_argument("--sources", default="emoji-84-60-0", help="folder of sources (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = vision_base(asked.folder)
    px = int(asked.sources.split("-")[1])
    params = profile(px, 0)
    network = base.network.to(getattr(torch, params.precision))
    sources = read_sources(base, asked.folder / "sources" / asked.sources)[:COUNT]
    images = read_images("emoji", px, asked.folder)
    own = [own_images(base, images, source, params.per_class, 0)[0] for source in sources]

    def others(name: str) -> list[Tensor]:
        """As many batches of the same size out of another set."""
        pixels = read_images(name, px, asked.folder).pixels
        chosen = pixels[torch.randperm(len(pixels), generator=generator(0, "statistics", name))]
        return [base.normalised(part / 255) for part in chosen.split(len(own[0]))[:COUNT]]

    sets = {"emoji": own} | {name: others(name) for name in ("tuxpaint", "cifar")}
    expected = {
        kind: expected_moments(base, network, px, params.calibration, kind, generator(0, "statistics"))
        for kind in ("leaves", "shapes")
    }
    expected["own"] = feature_moments(network, torch.cat(own))
    rows = []
    for kind, moments in expected.items():
        for name, batches in sets.items():
            found = [float(feature_distance(feature_moments(network, batch), moments)) for batch in batches]
            rows.append({"expected": kind, "set": name, "least": round(min(found)), "most": round(max(found))})
            print(rows[-1], flush=True)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
