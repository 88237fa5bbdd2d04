"""A whole composition to test against: the one that an address names, or processes of this machine.

`SPOLIA_E2E_URLS` (one address or more, joined by commas, of API processes or of the proxy before them) and
`SPOLIA_API_KEY` name a running composition, such as docker/production/compose.yaml. Without them the tests start
PostgreSQL, an S3 server, two API processes and two workers of their own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.client import Client
from benchmarks import synthetic
from benchmarks.reliability.adapters import tiny_adapter
from benchmarks.reliability.cluster import Cluster, running

Q_AND_V = ("self_attn.q_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Composition:
    """Where it answers. `cluster` is None for one that was running already and must not be harmed."""

    urls: tuple[str, ...]
    api_key: str | None
    base_model: str
    cluster: Cluster | None

    def adapter(self, folder: Path, seed: int) -> Path:
        """A folder with a new adapter of random weights that fits the base model."""
        if self.cluster is not None:
            tiny_adapter(folder, self.base_model, seed=seed)
        else:
            synthetic.write_adapter(
                folder, synthetic.SMOLLM2_BLOCK, 30, rank=4, seed=seed, base=self.base_model, suffixes=Q_AND_V
            )
        return folder

    def client(self, number: int = 0) -> Client:
        """A client of one of the API processes."""
        return Client(self.urls[number % len(self.urls)], api_key=self.api_key)


@contextmanager
def composition(folder: Path, base: Path) -> Iterator[Composition]:
    """The running one, or a new one that ends with the block."""
    key = os.environ.get("SPOLIA_API_KEY")
    if urls := os.environ.get("SPOLIA_E2E_URLS"):
        addresses = tuple(url.strip().rstrip("/") for url in urls.split(","))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        models = httpx.get(f"{addresses[0]}/v1/models", headers=headers, timeout=60).raise_for_status().json()
        yield Composition(addresses, key, models["data"][0]["id"], None)
        return
    with running(folder, base) as cluster:
        yield Composition(tuple(cluster.urls), None, str(base), cluster)
