"""Several clients at once upload, move aliases, generate, hang up, unload and delete: every answer is from the version
that it names."""

import time
from pathlib import Path

from benchmarks.serving.churn import Ledger, churn, write_voices
from tests.app.service import Service


def test_every_answer_speaks_with_the_voice_of_the_version_that_it_names(service: Service, tmp_path: Path) -> None:
    ledger = Ledger()
    churn(f"http://127.0.0.1:{service.port}", write_voices(tmp_path, 8), ledger, operations=160, clients=4)
    assert ledger.wrong == []
    assert ledger.counts["generate 200"] > 20
    assert {"upload 201", "move_alias 200", "hang_up 200", "unload 200", "delete 204"} <= ledger.counts.keys()
    deadline = time.monotonic() + 30  # who hung up last is noticed a moment later
    while (state := service.http.get("/v1/pool").json())["queue"]["running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (state["queue"]["running"], state["queue"]["waiting"]) == (0, 0)
    assert all(adapter["leases"] == 0 for adapter in state["adapters"])
