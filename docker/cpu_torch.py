"""Refuse CUDA before it is downloaded: the service computes on the CPU, and CUDA's packages are gigabytes.

Reads the report of `pip install --dry-run --report FILE torch` on standard input; fails when CUDA is in it.
"""

import json
import sys

CUDA = ("nvidia-", "cuda-")

found = [entry["metadata"]["name"].lower().replace("_", "-") for entry in json.load(sys.stdin)["install"]]
if gpu := [name for name in found if name.startswith(CUDA)]:
    sys.exit(
        f"pip would install torch for GPUs, with {len(gpu)} packages of CUDA. Let it see PyTorch's CPU wheels: build"
        " with --build-arg PIP_EXTRA_INDEX_URL=… (compose: set that variable), the address that PyTorch's install"
        " page names for Linux, pip and CPU. Or take the large image: --build-arg TORCH=any (compose:"
        " SPOLIA_TORCH=any)."
    )
