"""A service whose disk is full says so, loses nothing, and goes on once there is room."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.e2e.process import ServerProcess
from tests.factory import write_adapter

LARGE = {"layers.0.proj": (1024, 1024), "layers.1.proj": (1024, 1024)}


def small_disk(folder: Path) -> list[str]:
    """A command that runs another with little room for `folder`: a small filesystem, or a limit on file sizes."""
    folder.mkdir()
    for alone in (["unshare", "-m"], ["unshare", "-rm"]):
        try_it = [*alone, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
        if subprocess.run(try_it, capture_output=True, check=False).returncode == 0:
            mount = 'mount -t tmpfs -o size=14m tmpfs "$0" && exec "$@"'
            return [*alone, "bash", "-c", mount, str(folder)]
    return ["bash", "-c", 'ulimit -f 2500 && exec "$@"', "bash"]


def test_a_full_disk(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start(inside=small_disk(tmp_path / "data"), settings={"SPOLIA_MIN_FREE_BYTES": "0"})
    server.wait_ready()
    for name, seed in (("a", 1), ("b", 2)):
        source = write_adapter(tmp_path / name, LARGE, rank=120, base="acme/large", seed=seed)
        assert server.upload(f"full/{name}", source).status_code == 201

    accepted: list[str] = []
    while len(accepted) < 10:
        folder = write_adapter(tmp_path / "more", LARGE, rank=160, base="acme/large", seed=100 + len(accepted))
        answer = server.upload(f"full/more{len(accepted)}", folder)
        if answer.status_code != 201:
            break
        accepted.append(f"full/more{len(accepted)}@1")
    assert answer.status_code == 507, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:spolia:problem:storage-full"
    listed = {item["latest"]["ref"] for item in server.get("/v1/adapters")["items"]}
    assert listed == {"full/a@1", "full/b@1", *accepted}

    recipe = {"name": "full/merged", "sources": ["full/a", "full/b"], "method": "cat"}
    job = server.http.post("/v1/merges", json=recipe).json()
    ended = server.wait_job(job["id"])
    assert ended["state"] == "failed", ended
    assert ended["error"]["type"] == "urn:spolia:problem:storage-full"
    assert {item["latest"]["ref"] for item in server.get("/v1/adapters")["items"]} == listed
    assert server.get("/readyz")["ready"]
    small = write_adapter(tmp_path / "small", rank=2, base="acme/large")
    assert server.upload("full/small", small).status_code == 201
