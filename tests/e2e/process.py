"""A `spolia serve` process: start it, find its worker, kill either, ask it things."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

SPOLIA = Path(sys.executable).parent / "spolia"
ROOT = Path(__file__).parents[2]


def worker_of(pid: int) -> int | None:
    """The process id of the worker beside the API process `pid`, if there is one now."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"app.worker" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
    return None


class ServerProcess:
    """One service by its data folder; the process may change, the data and the port stay."""

    def __init__(
        self,
        data: Path,
        base: Path,
        log: Path,
        *,
        settings: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        """`inside`: a command that runs the server's own, such as ["nice"]."""
        self.data = data
        self.log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._inside = list(inside)
        self._environment = {
            **os.environ,
            "SPOLIA_DATA_DIR": str(data),
            "SPOLIA_PORT": str(self.port),
            "SPOLIA_BASE_MODEL": str(base),
            "SPOLIA_THREADS": "1",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._inside, str(SPOLIA), "serve"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Until all checks of /readyz pass."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with suppress(httpx.TransportError):
                if self.http.get("/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()[-3000:]}")

    def worker(self) -> int | None:
        """The worker's process id, if there is one now."""
        assert self.process is not None
        return worker_of(self.process.pid)

    def kill(self) -> None:
        """kill -9 of the server."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_worker(self) -> bool:
        """kill -9 of the worker, which is then gone; whether there was one."""
        pid = self.worker()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while self.worker() == pid:  # a large process takes a moment to die, and must not be taken for the next
                time.sleep(0.01)
        return pid is not None

    def stop(self) -> int:
        """Ask the server to end, as a terminal or a container does; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.http.close()
        return self.process.wait()

    def get(self, path: str) -> Any:
        """GET that must succeed; the JSON."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(self, ref: str, folder: Path) -> httpx.Response:
        """Multipart upload of an adapter's folder."""
        files = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        return self.http.post(f"/v1/adapters/{ref}/versions", files=files)

    def wait_job(self, job_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
            if job["state"] in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.1)
        raise AssertionError(f"job did not end: {job}\n{self.log.read_text()[-3000:]}")
