"""A client that waits for a merge does not mind that the service is killed and started again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.client import Client
from tests.e2e.process import ServerProcess
from tests.factory import write_adapter

WIDE = {f"layers.{i:03d}.proj": (576, 576) for i in range(60)}


def test_waiting_goes_on_through_a_kill_and_a_restart(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start(settings={"SPOLIA_MERGE_WORKERS": "1"})
    server.wait_ready()
    with Client(server.url) as spolia, ThreadPoolExecutor(1) as pool:
        folders = [
            write_adapter(tmp_path / f"{seed}", WIDE, rank=32, base="acme/wide", seed=seed, size=0.02)
            for seed in range(3)
        ]
        sources = [str(spolia.push(folder, f"a/{folder.name}")["ref"]) for folder in folders]
        job = spolia.merge("a/merged", sources, method="lego", rank=16, wait=False)
        next(event for event in spolia.events(job["id"]) if event[1]["progress"]["done"] > 0)
        waiting = pool.submit(spolia.wait, job["id"])
        server.kill()
        server.start()
        server.wait_ready()
        done = waiting.result(timeout=120)
        assert done["state"] == "succeeded"
        report = spolia.report(done["result"]["ref"])
        assert len(report["modules"]) == 60
        assert report["modules_resumed"] > 0
