"""Mixed operations by several clients at once, each answer checked against the version that it says it came from.

Adapters say their own names (say_names.py), each uploaded version another word. Clients upload versions, move aliases,
generate by every kind of reference, hang up in the middle of a stream, load and unload, and delete. Checked: an answer
speaks with the voice of the version that it names and that the reference could mean while it was asked; refusals are
problems that fit (404, 409, 422, 429); nothing hangs; the service's memory does not grow in the second half.

    python -m benchmarks.serving.churn [--operations 10000] [--clients 8] [--threads 2]

Prints a table and writes benchmarks/results/serving_churn.json; ends with an error if anything was wrong.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import base_folder, machine, write_results
from benchmarks.serving.say_names import Speaker, speaker
from benchmarks.serving.servers import spolia

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPTS = ("Who are you?", "What is your name?", "Say your name:", "Hello! I am")
TOKENS = 3
NAMES = 6
# How often each operation is drawn.
SHARES = {"generate": 50, "hang_up": 8, "upload": 10, "move_alias": 12, "load": 6, "unload": 8, "delete": 6}
EXPECTED = {404, 409, 422, 429}  # a version just deleted, an alias that holds it, one not loaded any more, a full queue


@dataclass
class Ledger:
    """What the clients know together: the word of every version, what happened, what was wrong."""

    words: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        """Count something that happened."""
        with self.lock:
            self.counts[what] += 1

    def complain(self, sentence: str) -> None:
        """Record something that must not happen."""
        with self.lock:
            self.wrong.append(sentence)


class Player:
    """One client: draws operations and checks every answer."""

    def __init__(self, url: str, folders: Mapping[str, Path], ledger: Ledger, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        self._folders, self._ledger, self._random = folders, ledger, random.Random(seed)
        self._moves: dict[str, Callable[[], None]] = {name: getattr(self, name) for name in SHARES}

    def play(self, operations: int) -> None:
        """Do so many operations; what raises is recorded, and the next one follows."""
        with self._http:
            for name in self._random.choices(list(SHARES), list(SHARES.values()), k=operations):
                try:
                    self._moves[name]()
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self._ledger.complain(f"{name}: {type(error).__name__}: {error}")

    def upload(self) -> None:
        """A new version, or an old one again."""
        word = self._random.choice(list(self._folders))
        name = self._name()
        with (self._folders[word] / "adapter_model.safetensors").open("rb") as weights:
            config = (self._folders[word] / "adapter_config.json").read_bytes()
            answer = self._http.post(f"/v1/adapters/{name}/versions", files={"config": config, "weights": weights})
        if self._fits("upload", answer, 200, 201):
            with self._ledger.lock:
                self._ledger.words[answer.json()["ref"]] = word

    def move_alias(self) -> None:
        """Let an alias mean another version."""
        if ref := self._some_version():
            name, _, number = ref.partition("@")
            address = f"/v1/adapters/{name}/aliases/production"
            self._fits("move_alias", self._http.put(address, json={"version": int(number)}), 200, 201)

    def generate(self) -> None:
        """Ask by a version, an alias or a bare name, alone or as one of a set; the voice must be the version's."""
        body = self._question(stream=False)
        answer = self._http.post("/v1/completions", json=body)
        if not self._fits("generate", answer, 200):
            return
        document = answer.json()
        refs = [entry["ref"] for entry in document["adapters"] if entry["weight"] > 0.5]
        text = document["choices"][0]["text"]
        with self._ledger.lock:
            word = self._ledger.words.get(refs[0]) if len(refs) == 1 else None
        if word is None:  # uploaded by another client that has not read its answer yet
            self._ledger.note("answers of versions not known yet")
        elif text != word * TOKENS:
            self._ledger.complain(f"{body['model']} answered {text!r} as {refs}, whose voice is {word!r}")
        asked = body["adapters"][0]["ref"] if "adapters" in body else body["model"]
        if "@" in asked and refs != [asked]:
            self._ledger.complain(f"{asked} was asked, {refs} answered")

    def hang_up(self) -> None:
        """Ask for a long stream and leave after its first piece."""
        body = {**self._question(stream=True), "max_tokens": 64}
        with self._http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 200:
                next(answer.iter_lines(), None)
                self._ledger.note("hang_up 200")
            else:
                answer.read()
                self._fits("hang_up", answer, 200)

    def load(self) -> None:
        """Load a version ahead of requests."""
        if ref := self._some_version():
            # 503: all that is in memory is in use, and a load ahead of requests waits for none of it.
            self._fits("load", self._http.post("/v1/pool/load", json={"ref": ref}), 200, 503)

    def unload(self) -> None:
        """Take a version out of memory, whoever is using it."""
        if ref := self._some_version():
            self._fits("unload", self._http.post("/v1/pool/unload", json={"ref": ref}), 200)

    def delete(self) -> None:
        """Delete a version, whoever is using it."""
        if ref := self._some_version():
            name, _, number = ref.partition("@")
            self._fits("delete", self._http.delete(f"/v1/adapters/{name}/versions/{number}"), 204)

    def _question(self, *, stream: bool) -> dict[str, Any]:
        ref = self._some_version() or self._name()
        name = ref.partition("@")[0]
        meant = self._random.choice([ref, ref, name, f"{name}:production"])
        body: dict[str, Any] = {"prompt": self._random.choice(PROMPTS), "max_tokens": TOKENS, "temperature": 0}
        if self._random.random() < 0.3 and (other := self._some_version()):
            quiet = {"ref": other, "weight": 0.0}
            return {**body, "model": BASE, "adapters": [{"ref": meant, "weight": 1.0}, quiet], "stream": stream}
        return {**body, "model": meant, "stream": stream}

    def _name(self) -> str:
        return f"churn/{self._random.randrange(NAMES)}"

    def _some_version(self) -> str | None:
        with self._ledger.lock:
            known = list(self._ledger.words)
        return self._random.choice(known) if known else None

    def _fits(self, what: str, answer: httpx.Response, *wanted: int) -> bool:
        self._ledger.note(f"{what} {answer.status_code}")
        if answer.status_code in wanted:
            return True
        problem = answer.headers.get("content-type") == "application/problem+json"
        if answer.status_code not in EXPECTED or not problem:
            self._ledger.complain(f"{what}: {answer.status_code} {answer.text[:300]}")
        return False


def write_voices(room: Path, count: int) -> dict[str, Path]:
    """Word → folder of the adapter that says it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    model = AutoModelForCausalLM.from_pretrained(base_folder()).float().eval()
    voice: Speaker = speaker(model, tokenizer, BASE, PROMPTS, count, TOKENS)
    return {word: voice.write(room / str(number), word) for number, word in enumerate(voice.words)}


def churn(url: str, folders: Mapping[str, Path], ledger: Ledger, operations: int, clients: int, seed: int = 0) -> None:
    """Let so many clients do so many operations in all."""
    with ThreadPoolExecutor(clients) as pool:
        players = [Player(url, folders, ledger, seed + number) for number in range(clients)]
        for done in [pool.submit(player.play, operations // clients) for player in players]:
            done.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", type=int, default=10)
    args = parser.parse_args()
    ledger, memory = Ledger(), list[float]()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        folders = write_voices(room / "voices", 24)
        size = (next(iter(folders.values())) / "adapter_model.safetensors").stat().st_size
        settings = {"ADAPTER_POOL_BYTES": 8 * size}  # fewer than there are: evictions all along
        with spolia(room / "data", threads=args.threads, settings=settings) as server:
            for part in range(args.parts):
                churn(server.url, folders, ledger, args.operations // args.parts, args.clients, seed=1000 * part)
                memory.append(server.memory_bytes() / 2**20)
                print(f"part {part}: {memory[-1]:.0f} MB, wrong so far: {len(ledger.wrong)}", flush=True)
            state = httpx.get(f"{server.url}/v1/pool", timeout=60).json()
    seconds = time.perf_counter() - started
    print(json.dumps(dict(sorted(ledger.counts.items())), indent=1))
    print(f"{sum(ledger.counts.values())} operations in {seconds:.0f} s; memory MB: {[round(one) for one in memory]}")
    document = {"machine": machine(args.threads), "operations": args.operations, "clients": args.clients}
    found = {
        "seconds": seconds,
        "counts": dict(ledger.counts),
        "memory_mb": memory,
        "wrong": ledger.wrong[:50],
        "pool": state,
    }
    write_results("serving_churn", {**document, **found})
    if ledger.wrong:
        sys.exit(f"{len(ledger.wrong)} things were wrong, first: {ledger.wrong[0]}")


if __name__ == "__main__":
    main()
