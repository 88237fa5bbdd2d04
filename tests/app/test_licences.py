"""Licences: what is read, what a merge inherits, what is refused; over HTTP with plans, reports and versions."""

from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.licences import KNOWN, Kind, NoDerivatives, card_licence, inherited, licence
from tests.app.service import Service, problem, small_adapter

ALLOWED = [name for kind, names in KNOWN.items() if kind is not Kind.NO_DERIVATIVES for name in names.split()]


@pytest.mark.parametrize(
    ("stated", "name", "kind"),
    [
        ("mit", "MIT", Kind.NOTICE),
        ("apache-2.0", "Apache-2.0", Kind.NOTICE),
        ("CC0-1.0", "CC0-1.0", Kind.PERMISSIVE),
        ("gpl-3.0", "GPL-3.0-only", Kind.STRONG_COPYLEFT),
        ("Llama3.1", "llama3.1", Kind.MODEL),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", Kind.NON_COMMERCIAL),
        ("cc-by-nc-nd-4.0", "CC-BY-NC-ND-4.0", Kind.NO_DERIVATIVES),
        ("MIT OR GPL-3.0-only", "MIT OR GPL-3.0-only", Kind.NOTICE),
        ("MIT AND GPL-3.0-only", "MIT AND GPL-3.0-only", Kind.STRONG_COPYLEFT),
        ("(MIT OR gemma) AND MPL-2.0", "(MIT OR gemma) AND MPL-2.0", Kind.WEAK_COPYLEFT),
        ("GPL-2.0-only WITH Classpath-exception-2.0", None, Kind.STRONG_COPYLEFT),
        ("MIT AND", None, Kind.UNKNOWN),
        ("(MIT", None, Kind.UNKNOWN),
        ("MIT MIT", None, Kind.UNKNOWN),
        ("my own words", None, Kind.UNKNOWN),
        (None, None, Kind.UNKNOWN),
        (" unknown ", None, Kind.UNKNOWN),
    ],
)
def test_licences_are_recognised(stated: str | None, name: str | None, kind: Kind) -> None:
    found = licence(stated)
    assert found.kind is kind
    if name is not None:
        assert found.name == name


# Ten lists of ten lists of … as one text would fill any memory; so would merging as many mappings into one.
LEVELS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
EXPLOSION = f"---\na0: &a0 [x]\n{LEVELS}\nlicense: [*a11]\n---\n"


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: mit\n---\n# Card", "mit"),
        ("---\r\ntags: [a]\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: my-licence\n---\n", "my-licence"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- gemma\n---\n", "mit AND gemma"),
        ("---\nlicense: {a: 1}\n---\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("---\n- a list\n---\n", None),
        ('---\nlicense: mit\nsize: !!int ""\n---\n', "mit"),
        ("---\ntags: &t [a]\nmore: *t\nlicense: cc-by-nd-4.0\n---\n", "cc-by-nd-4.0"),
        (EXPLOSION, None),
        ("# Card\nlicense: mit", None),
        (None, None),
    ],
)
def test_a_card_states_its_licence_in_its_front_matter(card: str | None, stated: str | None) -> None:
    assert card_licence(card) == stated


@given(st.text(max_size=60))
def test_whatever_is_stated_has_a_kind(text: str) -> None:
    assert licence(text).kind in Kind
    card_licence(f"---\n{text}\n---\n")


@given(st.lists(st.sampled_from([*ALLOWED, None, "something else"]), min_size=1, max_size=4))
def test_a_result_is_as_strict_as_its_strictest_source_in_any_order(stated: list[str | None]) -> None:
    sources = [(f"me/s{number}@1", one) for number, one in enumerate(stated)]
    kinds = {inherited(order).licence.kind for order in permutations(sources)}
    assert kinds == {max(licence(one).kind for one in stated)}
    found = inherited(sources)
    for source, one in found.sources:
        assert (one.kind is Kind.UNKNOWN) == any(note.startswith(f"{source} ") for note in found.notes)
    if found.licence.name is not None:  # what was inherited is read back as the same kind
        assert licence(found.licence.name).kind is found.licence.kind


@given(st.lists(st.sampled_from([*ALLOWED, None]), max_size=3), st.integers(0, 3), st.sampled_from(["CC-BY-ND-4.0"]))
def test_no_derivatives_is_refused_wherever_it_stands(others: list[str | None], at: int, name: str) -> None:
    stated = [*others[:at], name, *others[at:]]
    with pytest.raises(NoDerivatives, match=name):
        inherited([(f"me/s{number}@1", one) for number, one in enumerate(stated)])


def test_the_strictest_is_inherited_and_shown_everywhere(service: Service, tmp_path: Path) -> None:
    http = service.http
    service.push("law/mit", small_adapter(tmp_path / "a", rank=2), license="mit")
    folder = small_adapter(tmp_path / "b", rank=2)
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
        "card": b"---\nlicense: cc-by-nc-4.0\n---\n# Not for sale\n",
    }
    carded = http.post("/v1/adapters/law/nc/versions", files=files).json()
    assert carded["license"] == "cc-by-nc-4.0"
    assert carded["licensing"] == {"license": "CC-BY-NC-4.0", "kind": "non-commercial", "sources": [], "notes": []}
    recipe = {"name": "law/both", "sources": ["law/mit", "law/nc"]}
    plan = http.post("/v1/merges?dry_run=true", json=recipe).json()["plan"]
    expected = {
        "license": "CC-BY-NC-4.0",
        "kind": "non-commercial",
        "sources": [
            {"ref": "law/mit@1", "license": "MIT", "kind": "notice"},
            {"ref": "law/nc@1", "license": "CC-BY-NC-4.0", "kind": "non-commercial"},
        ],
        "notes": [],
    }
    assert plan["licensing"] == expected
    service.merge(**recipe)
    version = http.get("/v1/adapters/law/both/versions/1").json()
    assert version["license"] == "CC-BY-NC-4.0"
    assert version["licensing"] == expected
    assert http.get("/v1/adapters/law/both/versions/1/report").json()["licensing"] == expected
    service.push("law/silent", small_adapter(tmp_path / "c", rank=2))
    service.merge(name="law/unknown", sources=["law/both", "law/silent"])
    unknown = http.get("/v1/adapters/law/unknown/versions/1").json()
    assert unknown["license"] is None
    assert unknown["licensing"]["kind"] == "unknown"
    assert unknown["licensing"]["notes"] == [
        "law/silent@1 states no licence: the result counts as the strictest that such a licence could be."
    ]


def test_what_forbids_derivatives_is_no_source(service: Service, tmp_path: Path) -> None:
    service.push("law/nd", small_adapter(tmp_path / "a", rank=2), license="cc-by-nd-4.0")
    service.push("law/free", small_adapter(tmp_path / "b", rank=2), license="CC0-1.0")
    before = service.stored()
    recipe = {"name": "law/never", "sources": ["law/free", "law/nd"]}
    for path in ("/v1/merges", "/v1/merges?dry_run=true"):
        found = problem(service.http.post(path, json=recipe), 422, "no-derivatives")
        assert (
            found["detail"]
            == "law/nd@1 is licensed CC-BY-ND-4.0, which forbids derivatives; nothing can be made from it."
        )
        assert (found["reference"], found["license"]) == ("law/nd@1", "CC-BY-ND-4.0")
    assert service.stored() == before
