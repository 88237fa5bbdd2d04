"""schemathesis over the whole OpenAPI document of a service that asks for keys: every check, every operation.

    python -m benchmarks.api_fuzz --examples 200 [--postgres]

Starts `spolia serve` on an empty data folder, makes the first key on its database, pushes one of the example adapters
so that some names exist, and lets schemathesis ask: examples, boundary values, random calls (well and badly formed) and
chains of calls. It fails on any answer of 500 or above, on any answer that the document does not describe, on a key
that is not asked for. `--postgres`: on a PostgreSQL of its own, which takes less for text than SQLite does. Ends with
schemathesis' own exit status; its report is what is printed.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.postgres import running_server

HERE = Path(__file__).parent
CONFIG = HERE / "api_fuzz.toml"
BIN = Path(sys.executable).parent
EXAMPLE = HERE.parent / "examples" / "adapters" / "spam"


def main() -> int:
    """Run it; the exit status of schemathesis."""
    parser = argparse.ArgumentParser(description="schemathesis over the whole API")
    parser.add_argument("--examples", type=int, default=100, help="random calls of each operation")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, help="ask for so long instead")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    options, more = parser.parse_known_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spolia-fuzz-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        env = os.environ | {
            "SPOLIA_DATA_DIR": folder,
            "SPOLIA_PORT": str(port),
            "SPOLIA_REQUIRE_KEYS": "true",
            "SPOLIA_MAX_REQUEST_BYTES": str(1 << 20),
        }
        if options.postgres:
            env["SPOLIA_DATABASE_URL"] = stack.enter_context(running_server()).create_database()
        made = [BIN / "spolia", "keys", "create", "fuzz", "--grant", "*=admin", "--local"]
        key = subprocess.run(made, env=env, check=True, capture_output=True, text=True).stdout.strip()
        url = f"http://127.0.0.1:{port}"
        with (Path(folder) / "log").open("wb") as log:
            service = subprocess.Popen([BIN / "spolia", "serve"], env=env, stdout=log, stderr=log)
        try:
            wait_until_ready(url, service)
            client = env | {"SPOLIA_URL": url, "SPOLIA_API_KEY": key}
            subprocess.run([BIN / "spolia", "push", EXAMPLE, "examples/spam"], env=client, check=True)
            hooks = os.environ | {"PYTHONPATH": str(HERE.parent)}
            asking = command(url, key, options, more)
            return subprocess.run(asking, env=hooks, cwd=folder, check=False).returncode  # it leaves files behind
        finally:
            service.terminate()
            service.wait(60)
            print((Path(folder) / "log").read_text()[-4000:])


def command(url: str, key: str, options: argparse.Namespace, more: list[str]) -> list[str]:
    """The command line of schemathesis."""
    length = ["--max-time", str(options.seconds)] if options.seconds else ["--max-examples", str(options.examples)]
    return [
        *(str(BIN / "schemathesis"), "--config-file", str(CONFIG), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--checks", "all", "--phases", options.phases),
        *("--request-timeout", "120", "--max-response-time", "120"),  # of a model, on a CPU that others use
        *("--seed", str(options.seed), "--continue-on-failure", "--generation-database", ":memory:", *length, *more),
    ]


def wait_until_ready(url: str, service: subprocess.Popen[bytes], within_s: float = 180) -> None:
    """Return once the service can do its work."""
    until = time.monotonic() + within_s
    while time.monotonic() < until and service.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise SystemExit("the service did not start")


if __name__ == "__main__":
    sys.exit(main())
