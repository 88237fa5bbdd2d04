"""Every parser of what strangers send, under a coverage-guided fuzzer: `python -m tests.fuzz.parsers NAME [options]`.

    python -m tests.fuzz.parsers all --runs 1000000

Each parser either reads its bytes or refuses them with one of its own errors; anything else that is raised, a hang of
half a minute or a gibibyte of memory is a finding, and libFuzzer writes the input beside its message. `all` runs one
parser after the other, each in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app", "deltas", "store", "yaml", "python_multipart", "starlette"]):
    from app.client_http import SpoliaError
    from app.recipe_file import read_recipe
    from deltas.adapter import Adapter
    from deltas.config import read_config
    from deltas.errors import DeltaError
    from deltas.header import read_header
    from deltas.tokenizer import Tokenizer
    from store.cursors import decode_cursor, encode_cursor
    from store.errors import StoreError
    from store.references import parse_reference
    from tests.fuzz.request_parsers import REQUEST_PARSERS
    from tests.fuzz.seeds import WORDS

from tests.factory import write_adapter
from tests.fuzz.parser import Parser

SHARED_MEMORY = Path("/dev/shm")  # files that are written a million times
HANG_S, MEMORY_MIB = 30, 1024


def _header(data: bytes, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(data)
    read_header(path)


def _adapter(data: bytes, folder: Path) -> None:
    """The first two bytes say how long the config is; the rest is the weights."""
    cut = 2 + int.from_bytes(data[:2], "little")
    weights = folder / "adapter_model.safetensors"
    weights.unlink(missing_ok=True)  # a map of the last one may be open
    weights.write_bytes(data[cut:])
    adapter = Adapter.open(data[2:cut], weights)
    adapter.check_finite()
    for name in adapter.modules:
        adapter.factors(name)


def _recipe(data: bytes, folder: Path) -> None:
    for name in ("recipe.yaml", "recipe.json"):
        path = folder / name
        path.write_bytes(data)
        read_recipe(path)


def _parts(folder: Path) -> tuple[bytes, bytes]:
    write_adapter(folder, rank_pattern={"model.layers.1.q_proj": 3})
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()


def _adapter_seeds(folder: Path) -> list[bytes]:
    config, weights = _parts(folder)
    return [len(config).to_bytes(2, "little") + config + weights]


TOKENIZER = b"""{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "normalizer": null,
"added_tokens": [{"id": 2, "content": "<x>", "special": true, "normalized": false, "lstrip": false, "rstrip": false,
"single_word": false}]}"""
RECIPE = b"""sources:
  - {ref: team/a, weight: 0.5}
  - {ref: team/b@2, weights: {"layers.*": [0, 1]}}
method: ties
params: {density: 0.3}
rank: 0.99
"""

PARSERS = {
    "header": Parser(_header, DeltaError, lambda folder: [_parts(folder)[1]]),
    "config": Parser(lambda data, _: read_config(data), DeltaError, lambda folder: [_parts(folder)[0]]),
    "adapter": Parser(_adapter, DeltaError, _adapter_seeds),
    "tokenizer": Parser(lambda data, _: Tokenizer(data).check(), DeltaError, lambda _: [TOKENIZER]),
    "reference": Parser(
        lambda data, _: parse_reference(data.decode("utf-8", "replace")),
        StoreError,
        lambda _: [b"team/spam", b"team/spam@3", b"team/spam:production", b"sha256:" + b"0a" * 32],
        longest=256,
    ),
    "cursor": Parser(
        lambda data, _: decode_cursor("adapters", data.decode("utf-8", "replace"), 2),
        StoreError,
        lambda _: [encode_cursor("adapters", ["team", "spam"]).encode()],
        longest=256,
    ),
    "recipe": Parser(_recipe, SpoliaError, lambda _: [RECIPE, b'{"sources": ["a/b", "c/d"], "method": "sum"}']),
    **REQUEST_PARSERS,
}


def fuzz(name: str, runs: int, seconds: int, seed: int, folder: Path) -> None:
    """Run one parser; the process ends with libFuzzer's exit code."""
    parser = PARSERS[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(parser.seeds(folder)):
        (corpus / str(number)).write_bytes(data)

    words = folder / "words"
    words.write_text("".join('"' + "".join(map(r"\x{:02x}".format, word)) + '"\n' for word in WORDS))

    def one(data: bytes) -> None:
        sentence = "read"
        try:
            parser.read(data, folder)
        except parser.refusal as error:
            sentence = str(error)
        assert 0 < len(sentence.encode()) < 5000  # an answer has to carry it

    options = [
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={parser.longest}",
        f"-timeout={HANG_S}",
    ]
    options += [f"-rss_limit_mb={MEMORY_MIB}", "-verbosity=0", "-print_final_stats=1", f"-dict={words}", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["all", *PARSERS])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop each after so long; 0: when it has run so often")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.name == "all":
        words = [sys.executable, "-m", "tests.fuzz.parsers"]
        options = [f"--runs={asked.runs}", f"--seconds={asked.seconds}", f"--seed={asked.seed}"]
        return max(subprocess.run([*words, name, *options], check=False).returncode for name in PARSERS)
    print(f"{asked.name}: {asked.runs} executions", flush=True)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
        fuzz(asked.name, asked.runs, asked.seconds, asked.seed, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
