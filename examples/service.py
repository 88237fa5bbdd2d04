"""Start a service for the demo if none answers, and wait for it where one can see it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from app.cli_output import err, fail, out
from app.client import Client, SpoliaError
from app.settings import Settings

READY_WITHIN_S = 180.0
LOOK_EVERY_S = 0.3


def start_service(spolia: Client, settings: Settings) -> str:
    """Make sure that a service is ready at the client's address; the command that stops it."""
    pid_file = settings.data_dir / "serve.pid"
    try:
        ready = spolia.ready()
    except SpoliaError as error:
        if error.slug != "unreachable":
            raise
        out.print(f"Nothing answers at {spolia.url}: starting `spolia serve` …")
        process = _spawn(settings, pid_file)
        _wait(spolia, process, settings.data_dir / "serve.log")
        out.print(f"Spolia is ready at {spolia.url}; it keeps everything in {settings.data_dir.absolute()}.")
        return f"kill {process.pid}"
    if not ready:
        _wait(spolia, None, settings.data_dir / "serve.log")
    out.print(f"Spolia answers at {spolia.url}.")
    mine = pid_file.is_file() and _alive(int(pid_file.read_text()))
    return f"kill {pid_file.read_text().strip()}" if mine else "Ctrl+C where you started it"


def _spawn(settings: Settings, pid_file: Path) -> subprocess.Popen[bytes]:
    """`spolia serve` in a session of its own, so that it outlives this script."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("spolia"), "serve"],
            env=os.environ | settings.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pid_file.write_text(f"{process.pid}\n")
    return process


def _wait(spolia: Client, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Return once the service is ready; ends the demo with the log's last lines if it is not."""
    started = time.monotonic()
    with err.status("Starting the service …") as status:
        while (waited := time.monotonic() - started) < READY_WITHIN_S:
            if process is not None and process.poll() is not None:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                fail(f"the service ended with status {process.returncode}; the end of {log}:\n{last}")
            try:
                if spolia.ready():
                    return
            except SpoliaError as error:
                if error.slug not in ("unreachable", "connection-broken"):
                    raise
            status.update(f"Starting the service and loading the base model … {waited:.0f} s")
            time.sleep(LOOK_EVERY_S)
    fail(f"the service was not ready within {READY_WITHIN_S:.0f} s; see {log}.")


def _alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except OSError:
        return False
    return True
