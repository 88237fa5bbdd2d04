"""Download throughput beside nginx serving the same file, and what the first bytes cost.

    python -m benchmarks.transfer.download [--megabytes 400] [--rounds 9]

Both are asked by curl, in turns. nginx sends by sendfile, as it does by default on Debian.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measuring import machine, summary, write_results
from benchmarks.serving.servers import free_port, running
from benchmarks.transfer.upload import SPOLIA
from benchmarks.transfer.weights import write

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "acme/large",
    "r": 1,
    "lora_alpha": 1,
    "target_modules": ["proj"],
}


def downloaded(url: str) -> float:
    """Seconds of one download to nowhere."""
    words = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{time_total}", url]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def nginx(folder: Path, port: int) -> list[str]:
    """The command of an nginx that serves the folder."""
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null; user root;
        events {{}}
        http {{
            access_log off; sendfile on; tcp_nopush on;
            client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
            uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
            server {{ listen 127.0.0.1:{port}; root {folder}; }}
        }}
    """)
    return ["nginx", "-c", str(config)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    ours, theirs, ratios = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = write(folder / "weights", asked.megabytes << 20)
        blobs = folder / "data" / "blobs" / "sha256" / digest[:2]
        port, other = free_port(), free_port()
        environment = {"SPOLIA_DATA_DIR": str(folder / "data"), "SPOLIA_PORT": str(port)}
        with (
            running(SPOLIA, port, threads=1, ready="/readyz", environment=environment) as server,
            running(nginx(folder, other), other, threads=1, ready="/nginx.conf"),
        ):
            upload = ["curl", "-sS", "--fail", "-o", "/dev/null", "-T", str(folder / "weights")]
            subprocess.run([*upload, f"{server.url}/v1/uploads/{digest}"], check=True)
            tensors = {"config": CONFIG, "weights": f"sha256:{digest}"}
            made = ["curl", "-sS", "-X", "POST", "-H", "content-type: application/json", "-d", json.dumps(tensors)]
            subprocess.run([*made, "--fail", "-o", "/dev/null", f"{server.url}/v1/adapters/a/b/versions"], check=True)
            path = "/v1/adapters/a/b/versions/1/files/adapter_model.safetensors"
            (folder / "same").hardlink_to(blobs / digest)
            for round_ in range(asked.rounds + 1):
                pair = downloaded(server.url + path), downloaded(f"http://127.0.0.1:{other}/same")
                if round_:  # the first one warms both
                    ours.append(pair[0])
                    theirs.append(pair[1])
                    ratios.append(pair[1] / pair[0])
                    print(f"spolia {pair[0]:.3f} s, nginx {pair[1]:.3f} s: {ratios[-1]:.0%}")
    print(f"download at {summary(ratios)['median']:.0%} of nginx (median of {asked.rounds}; the bar is 80 %)")
    document = {"machine": machine(1), "megabytes": asked.megabytes, "load": os.getloadavg(), "ratio": summary(ratios)}
    write_results("transfer_download", document | {"spolia_s": summary(ours), "nginx_s": summary(theirs)})


if __name__ == "__main__":
    main()
