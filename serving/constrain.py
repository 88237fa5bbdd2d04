"""Answers of a given form: which tokens a JSON schema or a regular expression lets come next.

llguidance does the work: it turns a schema into a grammar, and for each step of a request the grammar's state into a
mask over the vocabulary. What it cannot enforce of a schema it refuses, so an answer that came to its own end always
matches. Compiling happens on the caller's thread, without the interpreter's lock, and is remembered; the engine's
thread only asks for masks.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from serving.errors import ConstraintBroken, ConstraintUnsupported

_KEPT_GRAMMARS = 64
# whitespace_pattern: at most so much where JSON allows any; a small model would otherwise go on indenting for ever.
# json_allowed_escapes: without \u no half of a surrogate pair can be written, and a string is as long as it looks.
# The last two: a schema cannot ask to be enforced in part only.
_OPTIONS: Any = {
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}
_CONTROL = re.compile(r"(?<!\\)(?:\\\\)*(\\u00[01][0-9a-f])")
_KEYWORDS = re.compile(r"Unimplemented keys: \[(.*)\]")
_DATA = frozenset({"const", "enum", "default", "examples"})


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form of an answer. `source`: the JSON schema as JSON, or the regular expression the whole answer matches."""

    kind: Literal["json_schema", "regex"]
    source: str


class Matcher:
    """One answer's way through its grammar; for one thread at a time. `over`: the answer is whole, nothing can follow.

    Raises ConstraintBroken when the grammar cannot go on (its own limits, or a token that it had forbidden).
    """

    def __init__(self, state: LLMatcher, vocabulary: int) -> None:
        self._state, self._vocabulary = state, vocabulary

    @property
    def over(self) -> bool:
        return self._state.is_stopped()

    def forbidden(self) -> Tensor:
        """Mask [vocabulary], True for tokens that must not come next."""
        allowed = np.frombuffer(self._state.compute_logit_bias(), dtype=np.uint8)[: self._vocabulary]
        self._check()
        return torch.from_numpy(allowed == 0)

    def take(self, token: int) -> None:
        """The answer goes on with this token."""
        self._state.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._state.is_error():
            raise ConstraintBroken(_reason(self._state.get_error()))


class Grammars:
    """Compiled constraints of one tokenizer; safe to use from several threads. `ends`: the model's end tokens."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._source, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._unreadable: str | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def prepare(self) -> None:
        """Read the tokenizer, which takes a second and the interpreter's lock; best before anybody waits. If it cannot
        be read, `start` will say so."""
        with self._lock:
            if self._tokenizer is not None or self._unreadable is not None:
                return
            try:
                made = llguidance.hf.from_tokenizer(self._source, n_vocab=self._vocabulary, eos_token=self._ends)
                self._tokenizer = made
            except Exception as error:  # whatever is wrong with it, answers without a form need no grammar
                self._unreadable = _reason(str(error)) or type(error).__name__

    def start(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of an answer. May take tenths of a second where the constraint is new.

        Raises ConstraintUnsupported.
        """
        self.prepare()
        with self._lock:
            tokenizer, known = self._tokenizer, self._compiled.get(constraint)
        if tokenizer is None:
            reason = f"the base model's tokenizer cannot be read for it ({self._unreadable})"
            raise ConstraintUnsupported(constraint.kind, reason)
        compiled = known or _compiled(constraint, tokenizer)
        with self._lock:
            self._compiled[constraint] = compiled
            self._compiled.move_to_end(constraint)
            while len(self._compiled) > _KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy(), self._vocabulary)


def _compiled(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    if constraint.kind == "regex":
        grammar = LLMatcher.grammar_from_regex(constraint.source)
    else:
        _refuse_controls(constraint)
        _refuse_counting(constraint)
        try:
            grammar = LLMatcher.grammar_from_json_schema(constraint.source, overrides=_OPTIONS)
        except ValueError as error:  # its reader of JSON takes less than Python's: no half surrogates, less depth
            raise ConstraintUnsupported(constraint.kind, _reason(str(error))) from error
    made = LLMatcher(tokenizer, grammar, log_level=0)
    if made.is_error():
        raise ConstraintUnsupported(constraint.kind, _reason(made.get_error()))
    return made


def _refuse_controls(constraint: Constraint) -> None:
    """They need the escape that answers do not have; in a schema's own strings they would be lost."""
    if found := _CONTROL.search(constraint.source):
        raise ConstraintUnsupported(constraint.kind, f"it holds the control character {found[1]}")


def _refuse_counting(constraint: Constraint) -> None:
    """A grammar cannot keep the names of free properties apart, so it cannot count them."""
    for part in _schemas(json.loads(constraint.source)):
        least, required = part.get("minProperties"), part.get("required", [])
        if not isinstance(least, int | float) or not isinstance(required, list):
            continue
        named = len({name for name in required if isinstance(name, str)})  # a name twice is one property
        if least > named + 1:
            reason = f"minProperties {least:g} asks for {least - named:g} different names beyond those in required"
            raise ConstraintUnsupported(constraint.kind, reason)


def _schemas(schema: object) -> Iterator[Mapping[str, Any]]:
    """Every object within a schema, except in what is data there."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(value for name, value in part.items() if name not in _DATA)
        elif isinstance(part, list):
            waiting.extend(part)


def _reason(message: str) -> str:
    """The one line of a complaint that says what is wrong; beside it stand dumps and drawings of the place."""
    lines = message.strip().split("\n")
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if named := _KEYWORDS.fullmatch(line):
        words = named[1].replace('"', "")
        line = f"the keywords {words} are not supported"
    return line.rstrip(".")
