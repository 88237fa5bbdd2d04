"""Runs on the code of an earlier release (its folder is the current one): does what it is told on standard input.

A line is a JSON list, a verb and what it is given; so is the answer, what came of it. `open` is what that release does
with its database and files when it starts; uploads are checked and merges run as its service and worker do it.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from app.job_runner import JobRunner
from app.merging_service import draft_merge
from app.schemas import MergeBody, VersionForm
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.uploading import Upload, publish_file
from app.worker import KINDS
from deltas.factors import norm


class OldRelease:
    """One process of the earlier release."""

    shelves: Shelves

    def open(self, allow_newer: bool) -> None:
        """As at its start."""
        self.shelves = open_shelves(Settings())
        options = {"allow_newer": True} if allow_newer else {}
        self.shelves.database.migrate(**options)

    def push(self, ref: str, folder: str, tags: list[str]) -> str:
        """Upload a folder; its reference."""
        namespace, _, name = ref.partition("/")
        config = (Path(folder) / "adapter_config.json").read_bytes()
        upload = Upload(namespace, name, config, "A card.", VersionForm(tags=tags))
        with (Path(folder) / "adapter_model.safetensors").open("rb") as weights:
            return publish_file(self.shelves, upload, weights)[0].ref

    def alias(self, ref: str, alias: str, number: int) -> str:
        """Point an alias to a version."""
        return self.shelves.registry.set_alias(*ref.split("/"), alias, number).ref

    def tags(self, ref: str, tags: list[str]) -> list[str]:
        """Replace an adapter's tags."""
        return list(self.shelves.registry.set_tags(*ref.split("/"), tags))

    def delete(self, ref: str, number: int) -> None:
        """Delete a version."""
        self.shelves.registry.delete_version(*ref.split("/"), number)

    def enqueue(self, name: str, sources: dict[str, float]) -> str:
        """Queue a merge; its job."""
        pairs = [{"ref": ref, "weight": weight} for ref, weight in sources.items()]
        draft = draft_merge(self.shelves, MergeBody.model_validate({"name": name, "sources": pairs, "method": "sum"}))
        return self.shelves.jobs.enqueue("merge", draft.payload, f"merge:{draft.recipe_digest}:{name}")[0].id

    def work(self, job_id: str) -> Any:
        """Run what is queued, as its worker does, until this job has ended; its result or error."""
        runner = JobRunner(self.shelves, KINDS)
        thread = threading.Thread(target=runner.run)
        thread.start()
        while not (job := self.shelves.jobs.get(job_id)).finished:
            time.sleep(0.02)
        runner.stop.set()
        runner.wake.set()
        thread.join()
        return job.result or job.error

    def read(self, ref: str) -> list[float]:
        """What a version does: the norms of its modules' updates, in the order of their names."""
        adapter = self.shelves.open_adapter(self.shelves.registry.resolve(ref))
        return [norm(adapter.factors(name)) for name in adapter.modules]

    def list(self, **filters: Any) -> list[str]:
        """The names of the adapters that pass these filters."""
        return [f"{one.namespace}/{one.name}" for one in self.shelves.registry.list_adapters(**filters).items]


def main() -> None:
    """Answer line by line until standard input ends."""
    release = OldRelease()
    for line in sys.stdin:
        verb, given = json.loads(line)
        print(json.dumps(getattr(release, verb)(**given)), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
