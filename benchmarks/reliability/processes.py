"""Spolia's own processes under test: started, killed, started again, their log kept in one file each."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks.reliability.forked import Child, Nursery
from benchmarks.reliability.postgres import free_port

_SPOLIA = Path(sys.executable).parent / "spolia"
_ROOT = Path(__file__).parents[2]
LOADED_WITH = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


class SpoliaProcess:
    """`spolia WORDS…` with some settings; the process may change, the words stay."""

    def __init__(self, name: str, words: Sequence[str], settings: Mapping[str, str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._words, self._prefix = list(words), list[str]()
        self._settings = {**LOADED_WITH, **settings}
        self._process: subprocess.Popen[bytes] | Child | None = None
        self._nursery: Nursery | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def inside(self, *prefix: str) -> None:
        """Start it from now on by another program, such as `ip netns exec …`."""
        self._prefix = list(prefix)

    def give(self, settings: Mapping[str, str]) -> None:
        """More settings, from the next start on."""
        self._settings |= settings

    def born_in(self, nursery: Nursery) -> None:
        """Fork it from now on, instead of loading its libraries each time, unless another program is to start it or a
        library is to be loaded before all others."""
        self._nursery = nursery

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        if self._nursery is not None and not self._prefix and "LD_PRELOAD" not in self._settings:
            environment = {**os.environ, **self._settings, "PYTHONPATH": str(_ROOT)}
            self._process = self._nursery.bear(self._words, environment, self.log)
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, str(_SPOLIA), *self._words],
                cwd=_ROOT,
                env={**os.environ, **self._settings, "PYTHONPATH": str(_ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        environment = {**os.environ, **self._settings, "PYTHONPATH": str(_ROOT)}
        words = [*self._prefix, str(_SPOLIA), *self._words]
        return subprocess.run(words, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Ask it to end, as a terminal or a container does; it may take its time."""
        if self._process is not None and self.runs:
            self._process.terminate()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self.runs:
            assert self._process is not None
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


class Api(SpoliaProcess):
    """One API process on a port of its own."""

    def __init__(self, name: str, settings: Mapping[str, str], folder: Path, host: str = "127.0.0.1") -> None:
        self.url = f"http://{host}:{free_port()}"
        where = {"SPOLIA_HOST": host, "SPOLIA_PORT": self.url.rpartition(":")[2]}
        super().__init__(name, ["serve"], {**settings, **where}, folder)

    def ready(self) -> bool:
        """Whether /readyz says yes."""
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def wait_ready(self, timeout_s: float = 300) -> None:
        """Until it is ready. Raises RuntimeError when it ends or takes longer."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if not self.runs or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready: {self.log.read_text()[-3000:]}")
            time.sleep(0.1)
