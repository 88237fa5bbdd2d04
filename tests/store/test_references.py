"""References and names: what is understood, and how the rest is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import BadReference, InvalidName
from store.references import Reference, parse_reference, validate_alias, validate_name, validate_tag

DIGEST = "0123456789abcdef" * 4
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(lambda name: ".." not in name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("team/spam", Reference("team", "spam")),
        ("team/spam@3", Reference("team", "spam", version=3)),
        ("team/spam:production", Reference("team", "spam", alias="production")),
        ("team/spam:latest", Reference("team", "spam")),
        (f"sha256:{DIGEST}", Reference(digest=DIGEST)),
    ],
)
def test_the_four_forms_and_latest(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@given(namespace=names, name=names, version=st.none() | st.integers(1, 999_999_999))
def test_a_reference_reads_back_as_it_was_written(namespace: str, name: str, version: int | None) -> None:
    reference = Reference(namespace, name, version=version)
    assert parse_reference(str(reference)) == reference


@given(st.text())
def test_any_text_is_a_reference_or_one_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadReference as error:
        sentence = str(error)
    else:
        sentence = str(reference)
        assert parse_reference(sentence) == reference
    assert sentence.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spam",
        "/spam",
        "team/",
        "a/b/c",
        "team/spam@",
        "team/spam@0",
        "team/spam@-1",
        "team/spam@03",
        "team/spam@1:x",
        "team/spam:x@1",
        "team/spam:",
        "team/..",
        "team/spam\n",
        "sha256:12",
        f"sha256:{DIGEST.upper()}",
    ],
)
def test_a_malformed_reference_says_what_a_reference_is(text: str) -> None:
    with pytest.raises(BadReference, match="write namespace/name, namespace/name@3"):
        parse_reference(text)


@pytest.mark.parametrize("name", ["a", "7", "Spam-2.0_x", "a" * 96])
def test_allowed_names(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a..b", "a/b", "a b", "ä", "a\n", "a\x00", "a" * 97, "a\u202eb"])
def test_a_forbidden_name_is_shown_with_its_control_characters_escaped(name: str) -> None:
    with pytest.raises(InvalidName, match="A-Z a-z 0-9") as caught:
        validate_name(name, "namespace")
    assert str(caught.value).startswith("The namespace '")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("alias", ["latest", "12", "a:b", ""])
def test_an_alias_cannot_be_taken_for_something_else(alias: str) -> None:
    with pytest.raises(InvalidName, match="alias"):
        validate_alias(alias)


@pytest.mark.parametrize("tag", ["", "a,b", " a", "a\t", "x" * 65])
def test_forbidden_tags(tag: str) -> None:
    with pytest.raises(InvalidName, match="comma"):
        validate_tag(tag)


def test_tags_may_be_phrases() -> None:
    assert validate_tag("task: spam, ".strip(", ")) == "task: spam"
