"""Constrained answers: always of the form that was asked for, alone and in company; what cannot be had is refused."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deltas.adapter import Adapter
from serving.base_model import BaseModel
from serving.constrain import Constraint, Grammars
from serving.engine import Engine, FinishEvent, Generation, Sampling, TokenEvent
from serving.errors import ConstraintBroken, ConstraintUnsupported
from tests.serving.collecting import generate, submit
from tests.serving.schemas import SCHEMAS, Schema

SETS = [(), (("a0", 1.0),), (("a1", -0.5), ("a2", 0.7)), (("a5", 0.3), ("a3", 1.0))]
PERSON: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def _schema(schema: Schema) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


@pytest.fixture(scope="module")
def grammars(tiny_base: BaseModel) -> Grammars:
    return Grammars(tiny_base.tokenizer, tiny_base.vocabulary, tiny_base.eos_ids)


@pytest.fixture(scope="module")
def engine(tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter]) -> Iterator[Engine]:
    with Engine(tiny_base, tiny_adapters, pool_bytes=1 << 20, max_rows=8, max_waiting=64, threads=1) as running:
        yield running


def _walk(grammars: Grammars, base: BaseModel, constraint: Constraint, seed: int, steps: int = 400) -> str | None:
    """What comes out when allowed tokens are drawn at random; None if it has not ended after so many."""
    matcher, rng, ids = grammars.start(constraint), torch.Generator().manual_seed(seed), list[int]()
    while not matcher.over:
        if len(ids) == steps:
            return None
        allowed = (~matcher.forbidden()).nonzero()[:, 0]
        token = int(allowed[torch.randint(len(allowed), (), generator=rng)])
        if token in base.eos_ids:
            break
        matcher.take(token)
        ids.append(token)
    return str(base.tokenizer.decode(ids))


@settings(max_examples=150)
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_every_way_through_a_grammar_matches_its_schema(
    grammars: Grammars, tiny_base: BaseModel, schema: Schema, seed: int
) -> None:
    text = _walk(grammars, tiny_base, _schema(schema), seed)
    assert text is None or Draft202012Validator(schema).is_valid(json.loads(text)), (schema, text)


@settings(max_examples=8)
@given(schemas=st.lists(SCHEMAS, min_size=4, max_size=4), seed=st.integers(0, 2**31))
def test_answers_match_their_schemas_in_a_mixed_batch(engine: Engine, schemas: list[Schema], seed: int) -> None:
    asked = Sampling(max_tokens=50, seed=seed, logprobs=2)
    generations = [
        Generation((5, 6, 7 + at), SETS[at], replace(asked, constraint=_schema(schema)))
        for at, schema in enumerate(schemas)
    ]
    free = [Generation((5, 6, 7), one, replace(asked, max_tokens=5)) for one in SETS]
    answers = generate(engine, [*generations, *free])
    for schema, one in zip(schemas, answers, strict=False):
        if one.finish.reason == "stop":
            assert Draft202012Validator(schema).is_valid(json.loads(one.text)), (schema, one.text)
        tokens = [event for event in one.events if isinstance(event, TokenEvent)]
        assert all(token.logprob is not None and math.isfinite(token.logprob) for token in tokens)


def test_greedy_answers_end_and_a_short_limit_is_said(engine: Engine) -> None:
    asked = Sampling(temperature=0.0, max_tokens=90, constraint=_schema(PERSON))
    whole, cut = generate(
        engine, [Generation((9, 8), SETS[1], asked), Generation((9, 8), SETS[1], replace(asked, max_tokens=4))]
    )
    assert whole.finish.reason == "stop"
    Draft202012Validator(PERSON).validate(json.loads(whole.text))
    assert cut.finish.reason == "length"
    assert whole.text.startswith(cut.text)


def test_a_seeded_answer_is_the_same_in_any_company(engine: Engine) -> None:
    asked = Generation((5, 6, 7), SETS[2], Sampling(seed=11, max_tokens=60, constraint=_schema(PERSON)))
    others = [Generation((9, at), SETS[at % 4], Sampling(seed=at, max_tokens=30)) for at in range(7)]
    alone = generate(engine, [asked])[0]
    assert generate(engine, [*others[:3], asked, *others[3:]])[3].tokens == alone.tokens


def test_an_ensemble_keeps_to_the_form(engine: Engine) -> None:
    schema = {"type": "array", "items": {"enum": ["red", 17, None]}, "minItems": 2, "maxItems": 3}
    members = (("a0", 0.5), ("a1", 0.25), ("", 0.25))
    for seed in range(3):
        asked = Sampling(seed=seed, max_tokens=80, constraint=_schema(schema))
        one = generate(engine, [Generation((9, 8), members, asked, combine="ensemble")])[0]
        assert one.finish.reason == "stop"
        Draft202012Validator(schema).validate(json.loads(one.text))


def test_a_stop_string_still_cuts_and_a_stop_token_ends(engine: Engine) -> None:
    asked = Sampling(temperature=0.0, max_tokens=60, constraint=Constraint("regex", "(ab|cd) end [0-9]{3}"))
    whole = generate(engine, [Generation((9, 8), (), asked)])[0]
    assert whole.finish.reason == "stop"
    cut = generate(engine, [Generation((9, 8), (), replace(asked, stop=(" end",)))])[0]
    assert (cut.text, cut.finish.reason) == (whole.text[:2], "stop")
    ended = generate(engine, [Generation((9, 8), (), replace(asked, stop_token_ids=(whole.tokens[1],)))])[0]
    assert (ended.tokens, ended.finish.reason) == (whole.tokens[:1], "stop")
    assert ended.finish.end is not None
    assert ended.finish.end.token_id == whole.tokens[1]


def test_a_bias_cannot_break_the_form(engine: Engine, tiny_base: BaseModel) -> None:
    forced = tiny_base.tokenizer.encode("hello")[0]
    asked = Sampling(
        temperature=0.0, max_tokens=9, logit_bias={forced: 100.0}, constraint=Constraint("regex", "[0-9]{4}")
    )
    assert generate(engine, [Generation((9, 8), (), asked)])[0].text.isdigit()


REFUSED: dict[str, tuple[Schema, str]] = {
    "not": ({"not": {"type": "string"}}, "not"),
    "conditions": ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
    "unique items": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
    "contains": ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    "property names": ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    "dependencies": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "a remote reference": ({"$ref": "https://example.org/schema.json"}, "example.org"),
    "an unknown format": ({"type": "string", "format": "horoscope"}, "horoscope"),
    "a look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    "a control character": ({"const": "a\x01b"}, "control character \\u0001"),
    "an overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}, "oneOf"),
    "half of a schema": ({"x-guidance": {"lenient": True}, "not": {"type": "null"}}, "keywords not"),
    "counted free properties": ({"type": "object", "minProperties": 3, "required": ["a"]}, "minProperties 3"),
    "a name required twice": ({"type": "object", "minProperties": 3, "required": ["a", "a"]}, "minProperties 3"),
    "a count with a point": ({"type": "object", "minProperties": 3.0, "required": ["a"]}, "minProperties 3"),
    "nothing at all": ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(engine: Engine, case: str) -> None:
    schema, words = REFUSED[case]
    with pytest.raises(ConstraintUnsupported) as refusal:
        submit(engine, Generation((5,), (), Sampling(constraint=_schema(schema))))
    message = str(refusal.value)
    assert message.startswith("This JSON schema cannot be enforced: ")
    assert words in message
    assert "\n" not in message


def test_data_within_a_schema_is_not_taken_for_a_schema(grammars: Grammars, tiny_base: BaseModel) -> None:
    text = _walk(grammars, tiny_base, _schema({"const": {"minProperties": 9}}), 0)
    assert text is not None
    assert json.loads(text) == {"minProperties": 9}


@pytest.mark.parametrize("schema", [{"const": "\ud800"}, json.loads('{"items":' * 150 + "{}" + "}" * 150)])
def test_a_schema_that_cannot_be_read_is_refused(grammars: Grammars, schema: Schema) -> None:
    with pytest.raises(ConstraintUnsupported, match=r"JSON schema cannot be enforced: .* at line 1"):
        grammars.start(_schema(schema))


def test_a_broken_pattern_is_refused(grammars: Grammars) -> None:
    with pytest.raises(ConstraintUnsupported, match="regular expression cannot be enforced"):
        grammars.start(Constraint("regex", "(unclosed"))


def test_a_tokenizer_that_cannot_be_read_is_named_when_it_is_needed() -> None:
    grammars = Grammars(object(), 10, frozenset({2}))
    grammars.prepare()
    with pytest.raises(ConstraintUnsupported, match="tokenizer cannot be read for it"):
        grammars.start(Constraint("regex", "a"))


def test_a_matcher_that_is_given_what_it_forbade_says_so(grammars: Grammars, tiny_base: BaseModel) -> None:
    matcher = grammars.start(Constraint("regex", "a"))
    with pytest.raises(ConstraintBroken):
        matcher.take(tiny_base.tokenizer.encode("b")[0])


def test_answers_of_one_grammar_do_not_touch_each_other(grammars: Grammars, tiny_base: BaseModel) -> None:
    """Many threads compile and walk the same few grammars at the same time."""
    constraints = [_schema(PERSON), Constraint("regex", "[a-z]{1,9}"), _schema({"type": "array", "maxItems": 3})]
    alone = [_walk(grammars, tiny_base, constraint, seed) for seed, constraint in enumerate(constraints * 4)]
    fresh = Grammars(tiny_base.tokenizer, tiny_base.vocabulary, tiny_base.eos_ids)
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = _walk(fresh, tiny_base, constraints[seed % 3], seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(len(alone))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[seed] for seed in range(len(alone))] == alone


def test_the_end_is_told_with_its_log_probability(engine: Engine) -> None:
    asked = Sampling(temperature=0.0, max_tokens=9, logprobs=1, logit_bias={2: 100.0})
    free = generate(engine, [Generation((5, 6), (), asked)])[0]
    assert isinstance(free.events[-1], FinishEvent)
    assert free.finish.end is not None
    assert (free.finish.end.token_id, free.finish.end.text) == (2, "")
    assert free.finish.end.logprob is not None
