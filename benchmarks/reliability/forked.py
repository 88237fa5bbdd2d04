"""Processes that the nursery gave birth to, handled as those of `subprocess` are."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_ROOT = Path(__file__).parents[2]


class Child:
    """A process that is somebody else's child: it can be asked, killed and waited for, but not for its status."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._handle)

    def poll(self) -> int | None:
        """None while it runs."""
        return 0 if select.select([self._handle], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        if not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("spolia", timeout or 0.0)
        return 0

    def kill(self) -> None:
        """kill -9."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)


class Nursery:
    """The process that forks them (benchmarks.reliability.nursery)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment`: what the libraries read while they are loaded, beside this process's own."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reliability.nursery"],
            cwd=_ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def bear(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """`spolia WORDS…` with this environment."""
        assert self._process.stdin is not None
        order = {"words": list(words), "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Child(int(self._answer()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End it; its children go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the nursery ended with status {self._process.wait()}")
        return line.strip()
