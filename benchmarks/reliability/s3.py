"""A real S3 server (SeaweedFS) of its own folder and ports."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks.reliability.postgres import free_port

_WEED = Path(sys.executable).parent / "weed"
ACCESS_KEY, SECRET_KEY, BUCKET = "spolia", "spolia-secret", "spolia"


class S3Process:
    """One server process; the process may change, the data and the ports stay."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        self._log = folder.with_suffix(".log")
        self._ports = {name: _twin_port() for name in ("master", "volume", "filer", "s3")}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it answers, over plain HTTP."""
        return f"http://{self.host}:{self._ports['s3']}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["server", "-dir", str(self.folder), "-ip", self.host, "-ip.bind", self.host]
        words += [
            "-s3.port.iceberg",
            "0",
            "-s3.port.lance",
            "0",
            "-master.telemetry=false",
            "-volume.max",
            "50",
            "-master.volumeSizeLimitMB",
            "256",
            "-filer",
            "-s3",
        ]
        for name, port in self._ports.items():
            words += [f"-{name}.port", str(port), f"-{name}.port.grpc", str(port + 10000)]
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(_WEED), *words], env={**os.environ, **keys}, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(httpx.TransportError):
                if self._has_bucket() and httpx.get(self.endpoint, timeout=5).status_code < 500:
                    return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the S3 server did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _has_bucket(self) -> bool:
        """Make the bucket, by a file in it: the filer knows buckets as folders."""
        filer = f"http://{self.host}:{self._ports['filer']}"
        return httpx.post(f"{filer}/buckets/{BUCKET}/made", files={"file": b"made"}, timeout=5).is_success

    def stop(self) -> None:
        """Stop in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _twin_port() -> int:
    """A free port whose twin, 10000 above it, can be used for gRPC."""
    while (port := free_port()) > 55_000:
        continue
    return port
