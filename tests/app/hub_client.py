"""huggingface_hub, the real one, pointed at the running service."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from tests.app.service import Service


@dataclass(frozen=True)
class Hub:
    """A client of its own cache. `endpoint`: what HF_ENDPOINT would be."""

    api: HfApi
    endpoint: str
    home: Path

    def download(self, repo: str, path: str, revision: str | None = None) -> Path:
        """hf_hub_download into the cache."""
        return Path(hf_hub_download(repo, path, revision=revision, endpoint=self.endpoint, cache_dir=self.home / "hub"))

    def snapshot(self, repo: str, revision: str | None = None) -> Path:
        """snapshot_download into the cache."""
        return Path(snapshot_download(repo, revision=revision, endpoint=self.endpoint, cache_dir=self.home / "hub"))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of its own, with nothing but HF_ENDPOINT pointing here."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def open_hub(service: Service, home: Path) -> Hub:
    """A client for the service."""
    endpoint = f"http://127.0.0.1:{service.port}"
    return Hub(HfApi(endpoint=endpoint, token="spolia-test"), endpoint, home)
