"""What a user sees at this moment: a request of each kind to every API process."""

import time
from collections import Counter
from pathlib import Path

import httpx

from benchmarks.reliability.adapters import tiny_adapter
from benchmarks.reliability.cluster import Cluster


class Probe:
    """A request of each kind, one after the other, against every API process."""

    def __init__(self, cluster: Cluster, base: Path) -> None:
        self._cluster, self._base, self._seed = cluster, base, 10**9
        self._version = 1  # the last one that was acknowledged

    def once(self, seen: Counter[str]) -> bool:
        """Whether all went well; what users were told is counted in `seen`."""
        well = True
        for url in self._cluster.urls:
            kinds = {"list": self._list, "upload": self._upload, "download": self._download, "merge": self._merge}
            for kind, ask in kinds.items():
                began = time.monotonic()
                try:
                    status = str(ask(url))
                except httpx.TimeoutException:
                    status = "no answer in 10 s"
                except httpx.TransportError as error:
                    status = type(error).__name__
                took = time.monotonic() - began
                seen[f"{kind} {status}" + (" after seconds" if took > 2 else "")] += 1
                well = well and status in ("200", "201", "202")
        return well

    def _list(self, url: str) -> int:
        return httpx.get(f"{url}/v1/adapters", timeout=10).status_code

    def _upload(self, url: str) -> int:
        self._seed += 1
        config, weights = tiny_adapter(self._cluster.folder / "probe", str(self._base), seed=self._seed)
        files = {"config": config, "weights": weights}
        answer = httpx.post(f"{url}/v1/adapters/probe/one/versions", files=files, timeout=10)
        if answer.is_success:
            self._version = int(answer.json()["version"])
        return answer.status_code

    def _download(self, url: str) -> int:
        file = f"{url}/v1/adapters/probe/one/versions/{self._version}/files/adapter_model.safetensors"
        return httpx.get(file, timeout=10).status_code

    def _merge(self, url: str) -> int:
        body = {"name": "probe/merged", "sources": ["probe/one@1", "probe/one@2"], "seed": self._seed, "method": "dare"}
        return httpx.post(f"{url}/v1/merges", json={**body, "params": {"density": 0.5}}, timeout=10).status_code
