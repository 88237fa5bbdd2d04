"""Clients that upload, read, merge, move aliases and delete through several API processes, and note what they are told.

A client asks a random process and, where nobody listens, the next one, as the proxy before them would; a request that
broke off is not repeated, for it may have been done. Each client owns one adapter name for aliases and deletions, so
that the order of its own requests is the order of what happens there; uploads of all clients also meet in one shared
name.
"""

import hashlib
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.reliability.adapters import tiny_adapter
from benchmarks.reliability.ledger import Ledger

SHARED = "storm/shared"
BROKEN_OFF, NOBODY = "broken off", "nobody there"
UNDERSTOOD = (503, 507)  # try again; no room
_LONGEST_THOUGHT_S = 0.4


class Client(threading.Thread):
    """One client, at work until told to stop."""

    def __init__(self, number: int, urls: Sequence[str], base: str, ledger: Ledger, folder: Path, seed: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.stopping = threading.Event()
        self.failure: Exception | None = None
        self._name, self._urls, self._base, self._ledger = f"storm/client-{number}", list(urls), base, ledger
        self._folder = folder / self._name.replace("/", "-")
        self._rng = random.Random(f"{seed}:{number}")
        self._made = 0

    def run(self) -> None:
        """One random request after the other."""
        acts = [self._upload, self._read, self._merge, self._move, self._delete]
        try:
            while not self.stopping.is_set():
                self._rng.choices(acts, (6, 4, 2, 3, 1))[0]()
                self.stopping.wait(self._rng.uniform(0, _LONGEST_THOUGHT_S))
        except Exception as error:  # shown by whoever joins the thread
            self.failure = error

    def _ask(self, kind: str, method: str, path: str, **more: object) -> httpx.Response | None:
        """One request; None when no answer came."""
        for url in self._rng.sample(self._urls, len(self._urls)):
            try:
                answer = httpx.request(method, url + path, timeout=60, **more)  # type: ignore[arg-type]
            except httpx.ConnectError:
                continue
            except httpx.TransportError:
                self._ledger.answered(kind, BROKEN_OFF)
                return None
            self._ledger.answered(kind, answer.status_code)
            if answer.status_code >= 500 and answer.status_code not in UNDERSTOOD:
                raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
            return answer
        self._ledger.answered(kind, NOBODY)
        time.sleep(0.5)  # they are being started again
        return None

    def _upload(self) -> None:
        self._made += 1
        config, weights = tiny_adapter(self._folder, self._base, seed=self._rng.randrange(2**31))
        name = SHARED if self._rng.random() < 0.3 else self._name
        files = {"config": config, "weights": weights}
        answer = self._ask("upload", "POST", f"/v1/adapters/{name}/versions", files=files)
        if answer is not None and answer.status_code in (200, 201):
            sha = hashlib.sha256(weights).hexdigest()
            self._ledger.uploaded(answer.json()["ref"], {"adapter_model.safetensors": sha})

    def _read(self) -> None:
        if not (living := self._ledger.living()):
            return
        ref = self._rng.choice(living)
        name, _, number = ref.rpartition("@")
        file = "adapter_model.safetensors"
        answer = self._ask("read", "GET", f"/v1/adapters/{name}/versions/{number}/files/{file}")
        if answer is None or answer.status_code != 200:
            return
        if hashlib.sha256(answer.content).hexdigest() != self._ledger.promised(ref)[file]:
            raise AssertionError(f"{ref}: {file} was half there")

    def _merge(self) -> None:
        living = self._ledger.living()
        if len(living) < 2:
            return
        sources = self._rng.sample(living, min(len(living), self._rng.randint(2, 4)))
        method = self._rng.choice(["sum", "ties", "lego"])
        body = {"name": "storm/merged", "sources": [{"ref": ref} for ref in sources], "method": method, "rank": 4}
        answer = self._ask("merge", "POST", "/v1/merges", json=body)
        if answer is not None and answer.status_code in (200, 202):
            self._ledger.merging(answer.json()["id"], sources)

    def _own(self) -> list[str]:
        return [ref for ref in self._ledger.living() if ref.startswith(self._name + "@")]

    def _move(self) -> None:
        if own := self._own():
            number = int(self._rng.choice(own).rpartition("@")[2])
            alias = f"{self._name}:production"
            place = self._ledger.moving(alias, number)
            path = f"/v1/adapters/{self._name}/aliases/production"
            answer = self._ask("promote", "PUT", path, json={"version": number})
            if answer is not None and answer.status_code == 200:
                self._ledger.moved(alias, place)

    def _delete(self) -> None:
        if own := self._own():
            ref = self._rng.choice(own)
            self._ledger.deleting(ref, done=False)
            number = ref.rpartition("@")[2]
            answer = self._ask("delete", "DELETE", f"/v1/adapters/{self._name}/versions/{number}")
            if answer is not None and answer.status_code in (204, 404):
                self._ledger.deleting(ref, done=True)
            elif answer is not None and answer.status_code == 409:
                self._ledger.not_deleted(ref)
