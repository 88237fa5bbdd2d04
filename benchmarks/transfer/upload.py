"""Upload throughput beside what nothing can beat: sha256 of the same bytes, and writing them to the same disk.

    python -m benchmarks.transfer.upload [--megabytes 200] [--rounds 7] [--parts]

Each round measures all three, one after another, so that a busy neighbour hits all alike. The bar is a share of the
slower of the two: the service must hash and write, and can do both while bytes arrive. `--parts` sends by tus 1.0.0.
"""

import argparse
import hashlib
import os
import subprocess
import tempfile
import time
from base64 import b64encode
from pathlib import Path

from benchmarks.measuring import machine, summary, write_results
from benchmarks.serving.servers import Server, free_port, running
from benchmarks.transfer.weights import body

SPOLIA = [os.environ.get("SPOLIA_COMMAND", "spolia"), "serve"]


def hashed(data: bytes) -> float:
    """Seconds of sha256."""
    began = time.perf_counter()
    hashlib.sha256(data).hexdigest()
    return time.perf_counter() - began


def written(data: bytes, folder: Path) -> float:
    """Seconds until the bytes are on the disk, as the service sees to it."""
    path = folder / "written"
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    path.unlink()
    return taken


def uploaded(server: Server, path: Path, digest: str, parts: bool) -> float:
    """Seconds of one upload by curl, from the first byte to the answer."""
    words = ["curl", "-sS", "--fail", "-o", "/dev/null", "-H", "Expect:", "-w", "%{time_total}"]
    if parts:
        words += ["-X", "PATCH", "--data-binary", f"@{path}", "-H", "Content-Type: application/offset+octet-stream"]
        words += ["-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Offset: 0", server.url + _begun(server, path, digest)]
    else:
        words += ["-T", str(path), f"{server.url}/v1/uploads/{digest}"]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _begun(server: Server, path: Path, digest: str) -> str:
    words = ["curl", "-sS", "--fail", "-X", "POST", "-D", "-", "-H", "Tus-Resumable: 1.0.0"]
    words += ["-H", f"Upload-Length: {path.stat().st_size}"]
    words += ["-H", f"Upload-Metadata: sha256 {b64encode(digest.encode()).decode()}"]
    told = subprocess.run([*words, f"{server.url}/v1/resumable-uploads"], check=True, capture_output=True, text=True)
    return next(line.split()[1] for line in told.stdout.splitlines() if line.lower().startswith("location:"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", action="store_true")
    asked = parser.parse_args()
    size = asked.megabytes << 20
    sha, disk, service, ratios = [], [], [], []
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"SPOLIA_DATA_DIR": str(folder / "data"), "SPOLIA_PORT": str(port)}
        with running(SPOLIA, port, threads=1, ready="/readyz", environment=environment) as server:
            data = body(size)
            for round_ in range(asked.rounds):
                own = data[:-8] + round_.to_bytes(4, "little") + bytes(4)
                digest = hashlib.sha256(own).hexdigest()
                (folder / "weights").write_bytes(own)
                os.sync()
                took = uploaded(server, folder / "weights", digest, asked.parts)
                os.sync()
                seconds = (hashed(own), written(own, folder), took)
                for values, value in zip((sha, disk, service), seconds, strict=True):
                    values.append(value)
                ratios.append(max(seconds[:2]) / took)
                print(f"sha256 {seconds[0]:.3f} s, disk {seconds[1]:.3f} s, upload {took:.3f} s: {ratios[-1]:.0%}")
    median = summary(ratios)["median"]
    print(f"upload at {median:.0%} of the slower of sha256 and disk (median of {asked.rounds}; the bar is 60 %)")
    document = {"machine": machine(1), "megabytes": asked.megabytes, "load": os.getloadavg(), "ratio": summary(ratios)}
    document |= {"sha256_s": summary(sha), "disk_s": summary(disk), "upload_s": summary(service)}
    write_results("transfer_upload_parts" if asked.parts else "transfer_upload", document)


if __name__ == "__main__":
    main()
