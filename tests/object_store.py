"""A real S3 server (SeaweedFS) for the tests that need one, in a process of its own."""

import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from store.s3 import S3Place

WEED = Path(sys.executable).with_name("weed")
READY_WITHIN_S = 60.0
BUCKET = "kept"


@dataclass(frozen=True)
class ObjectStore:
    """Where the server is, and its keys."""

    endpoint: str
    filer: str
    access_key: str = "test-access"
    secret_key: str = "test-secret"

    def place(self, **changes: object) -> S3Place:
        """A prefix that nobody else uses. One bucket for all: the server sets volumes aside for each."""
        given: dict[str, object] = {"prefix": f"some/{uuid.uuid4().hex}", "endpoint": self.endpoint}
        given |= {"access_key": self.access_key, "secret_key": self.secret_key, "patience_s": 10.0}
        return S3Place(**({"bucket": BUCKET} | given | changes))  # type: ignore[arg-type]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """The running server; it ends with the block, and its data lie in ``folder``."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = _free_ports(8)
    store = ObjectStore(f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{filer}")
    keys = [{"accessKey": store.access_key, "secretKey": store.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = {"identities": [{"name": "test", "credentials": keys, "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(identities))
    (folder / "data").mkdir()
    command = f"""
        server -dir {folder / "data"} -ip 127.0.0.1 -ip.bind 127.0.0.1
        -master.port {master} -master.port.grpc {master_grpc} -master.telemetry=false
        -volume.port {volume} -volume.port.grpc {volume_grpc} -volume.max 20 -master.volumeSizeLimitMB 256
        -filer -filer.port {filer} -filer.port.grpc {filer_grpc}
        -s3 -s3.port {s3} -s3.port.grpc {s3_grpc} -s3.port.iceberg 0 -s3.port.lance 0 -s3.config {folder / "s3.json"}
    """
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([WEED, *command.split()], stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_ready(store, process, folder / "log")
        yield store
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(store: ObjectStore, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        try:
            # A file can be written only once the volume server has joined.
            probe = httpx.post(f"{store.filer}/buckets/{BUCKET}/probe", files={"file": b"x"})
            if probe.is_success and httpx.get(store.endpoint).status_code == 403:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the object store did not start: {log.read_text()[-3000:]}")
