"""Real vLLM servers on this machine's CPU, one thread each."""

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SPOLIA_TEST_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
CACHE = PYTHON.parents[1] / "cache"  # of what it takes vLLM a whole process to find out about a model's class
MAX_RANK, SLOTS = 16, 3
READY_S = 300


@dataclass
class VllmServer:
    """One server process with all its children, in a process group of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def wait(self) -> "VllmServer":
        deadline = time.monotonic() + READY_S
        while not self.ready:
            tail = self.log.read_text("utf-8", "replace")[-4000:]
            assert self.process.poll() is None, f"vLLM ended while starting:\n{tail}"
            assert time.monotonic() < deadline, f"vLLM was not ready after {READY_S} s:\n{tail}"
            time.sleep(0.5)
        return self

    def signal(self, number: signal.Signals) -> None:
        """To the server and its engine process alike."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def adapters(self) -> list[str]:
        """Served names of the adapters that it holds."""
        cards = httpx.get(f"{self.url}/v1/models", timeout=30, trust_env=False).json()["data"]
        return [card["id"] for card in cards if card["parent"] is not None]

    def running(self) -> float:
        """Requests in its engine, by its own count."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text.splitlines()
        counts = [
            line for line in lines if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
        ]
        assert counts
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_server(base: Path, name: str, log: Path, hub: str) -> VllmServer:
    """Start a server for the base model in folder `base`, in float32; it is ready after `wait`. `hub`: HF_ENDPOINT."""
    port = free_port()
    options = {
        "model": base, "served-model-name": name, "host": "127.0.0.1", "port": port, "dtype": "float32",
        "max-model-len": 512, "max-num-seqs": 16, "max-loras": 2, "max-cpu-loras": SLOTS, "max-lora-rank": MAX_RANK,
    }  # fmt: skip
    arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(log.parent), "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CACHE_ROOT": str(CACHE),
    }  # fmt: skip
    module = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *arguments, "--enable-lora", "--enforce-eager"]
    with log.open("wb") as out:
        process = subprocess.Popen(module, stdout=out, stderr=out, env=environment, start_new_session=True)
    return VllmServer(f"http://127.0.0.1:{port}", process, log)
