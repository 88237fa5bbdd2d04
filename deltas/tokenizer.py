"""`tokenizer.json` of the tokenizers library, read as a stranger's document: which string an added token stands for.

A token's id is an accident of the order in which somebody added tokens; its string is what it means. So adapters whose
vocabulary grew are put together by strings. Two tokenizers are alike where model, normalizer and pre-tokenizer are:
text without added tokens then has the same ids in both.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltas.errors import BadTokenizer
from deltas.header import Limits
from deltas.strict_json import first_repeated, is_text

TOKENIZER_FILE = "tokenizer.json"
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")  # all of them change how text is cut


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One entry of `added_tokens`; `flags` in the order of FLAGS."""

    id: int
    content: str
    flags: tuple[bool, ...]

    def entry(self, id: int) -> dict[str, Any]:
        """The entry as tokenizer.json has it, under this id."""
        return {"id": id, "content": self.content, **dict(zip(FLAGS, self.flags, strict=True))}


class Tokenizer:
    """A tokenizer.json, parsed when it is asked for anything, since few adapters need it; little is kept but `ids`.

    Raises:
        BadTokenizer: from every property, where the file is not what it should be.
    """

    def __init__(self, source: bytes | Path, limits: Limits = Limits()) -> None:
        self._source = source
        self._limits = limits

    def document(self) -> dict[str, Any]:
        """The whole file, read anew."""
        if isinstance(self._source, Path):
            with self._source.open("rb") as file:
                raw = file.read(self._limits.tokenizer_bytes + 1)
        else:
            raw = self._source
        if len(raw) > self._limits.tokenizer_bytes:
            raise BadTokenizer(f"tokenizer.json is larger than {self._limits.tokenizer_bytes} bytes")
        try:
            document = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            raise BadTokenizer(f"tokenizer.json is not JSON{where}") from None
        if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
            raise BadTokenizer(
                "tokenizer.json must be a JSON object with a 'model', as the tokenizers library saves it"
            )
        if not is_text(raw, document):
            raise BadTokenizer("tokenizer.json holds half of a surrogate pair (such as \\ud800), which is no text")
        return document

    @cached_property
    def _read(self) -> tuple[dict[int, AddedToken], int]:
        document = self.document()
        known = _vocabulary(document["model"])
        return _added(document, known), max(known.values(), default=-1)

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """All entries of `added_tokens` by their ids, also those of the base's own special tokens."""
        return self._read[0]

    @property
    def largest(self) -> int:
        """The largest id of the model's own vocabulary, added tokens aside; -1 for an empty one."""
        return self._read[1]

    @cached_property
    def alike(self) -> str:
        """sha256 (hex) over model, normalizer and pre-tokenizer, however they are spelled."""
        return _alike(self.document())

    @cached_property
    def identity(self) -> str:
        """sha256 (hex) over the canonical JSON of the whole document, however its file is indented."""
        return _sha256(self.document())

    def check(self) -> None:
        """Raises BadTokenizer, if anything would."""
        _ = self.added

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Every token's id by its string, added tokens included."""
        document = self.document()
        return {**_vocabulary(document["model"]), **{token.content: token.id for token in self.added.values()}}


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """The model's own tokens: an object of string → id, or Unigram's list of [string, score]."""
    vocab = model.get("vocab")
    if isinstance(vocab, list) and all(isinstance(v, list) and v and isinstance(v[0], str) for v in vocab):
        return {piece[0]: index for index, piece in enumerate(vocab)}
    if isinstance(vocab, dict) and all(type(v) is int and v >= 0 for v in vocab.values()):
        return vocab
    raise BadTokenizer("tokenizer.json has no 'model.vocab' of strings and their ids")


def _added(document: Mapping[str, Any], known: Mapping[str, int]) -> dict[int, AddedToken]:
    entries = document.get("added_tokens", [])
    if not isinstance(entries, list):
        raise BadTokenizer("'added_tokens' of tokenizer.json must be a list")
    found: dict[int, AddedToken] = {}
    contents: dict[str, int] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadTokenizer(f"added_tokens[{place}] of tokenizer.json must be an object with id and content")
        id, content = entry.get("id"), entry.get("content")
        if type(id) is not int or not 0 <= id < 2**31 or not isinstance(content, str) or not content:
            raise BadTokenizer(f"added_tokens[{place}] of tokenizer.json must have an id and a content that is no empty"
                               " string")  # fmt: skip
        flags = tuple(entry.get(flag, flag == "normalized" and not entry.get("special")) for flag in FLAGS)
        if not all(isinstance(flag, bool) for flag in flags):
            raise BadTokenizer(f"added token '{content[:80]}' of tokenizer.json: {', '.join(FLAGS)} are true or false")
        if id in found:
            raise BadTokenizer(f"tokenizer.json gives id {id} to '{found[id].content[:80]}' and to '{content[:80]}'")
        other = contents.get(content, known.get(content, id))
        if other != id:
            raise BadTokenizer(f"tokenizer.json gives token '{content[:80]}' the ids {other} and {id}")
        found[id], contents[content] = AddedToken(id, content, flags), id
    return found


def _alike(document: Mapping[str, Any]) -> str:
    """Spelling that differs between versions of the library and means the same is levelled: merges as "a b" or
    ["a", "b"], and options that are off or left out."""
    model = {name: value for name, value in document["model"].items() if value not in (None, False, "")}
    if isinstance(merges := model.get("merges"), list):
        model["merges"] = [m if isinstance(m, str) else " ".join(map(str, m)) for m in merges]
    return _sha256([model, document.get("normalizer"), document.get("pre_tokenizer")])


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = first_repeated(pairs)
    if twice is not None:
        raise BadTokenizer(f"tokenizer.json gives '{twice[:200]}' twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise BadTokenizer(f"tokenizer.json holds {text}; numbers must be finite")
