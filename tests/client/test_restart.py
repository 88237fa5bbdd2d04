"""A client that waits for a merge does not mind that the service is killed and started again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.client import Client
from tests.client.conftest import free_port, make_adapter, serve


def test_waiting_goes_on_through_a_kill_and_a_restart(tmp_path: Path, base_folder: Path) -> None:
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    process = serve(data, port)
    try:
        with Client(f"http://127.0.0.1:{port}") as spolia, ThreadPoolExecutor(1) as pool:
            sources = [
                str(spolia.push(make_adapter(tmp_path / f"{seed}", seed=seed, rank=32, layers=30), f"a/{seed}")["ref"])
                for seed in range(3)
            ]
            job = spolia.merge("a/merged", sources, method="lego", rank=16, wait=False)
            next(event for event in spolia.events(job["id"]) if event[1]["progress"]["done"] > 0)
            waiting = pool.submit(spolia.wait, job["id"])
            process.kill()
            process.wait()
            process = serve(data, port)
            done = waiting.result(timeout=120)
            assert done["state"] == "succeeded"
            report = spolia.report(done["result"]["ref"])
            assert len(report["modules"]) == 60
            assert report["modules_resumed"] > 0
    finally:
        process.terminate()
        process.wait(30)
