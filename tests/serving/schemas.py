"""Small JSON schemas, made by Hypothesis: of every kind that a grammar can follow."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = st.text("abcxyz_", min_size=1, max_size=6)
_VALUES = st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab é"\\\n', max_size=4)


@st.composite
def _integers(draw: st.DrawFn) -> Schema:
    low, high = sorted((draw(st.integers(-999, 999)), draw(st.integers(-999, 999))))
    return {"type": "integer", "minimum": low, "maximum": high}


@st.composite
def _strings(draw: st.DrawFn) -> Schema:
    low, high = sorted((draw(st.integers(0, 6)), draw(st.integers(0, 6))))
    return {"type": "string", "minLength": low, "maxLength": high}


_LEAVES: st.SearchStrategy[Schema] = st.one_of(
    _integers(),
    _strings(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda values: {"enum": values}, st.lists(_VALUES, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, _VALUES),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{1,3}(-[0-9]{2})?$"},
            {"type": "string", "format": "date"},
            {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 7},
            {"type": ["boolean", "null"]},
        ]
    ),
)


@st.composite
def _objects(draw: st.DrawFn, parts: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(_NAMES, parts, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _containers(parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        parts,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    choices = st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3))
    return arrays | choices | _objects(parts)


SCHEMAS: st.SearchStrategy[Schema] = st.recursive(_LEAVES, _containers, max_leaves=5)
