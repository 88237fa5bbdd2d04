"""The prefix store against a plain list of texts: it finds the truth, within its budget; the least used goes first."""

import gc
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.adapter_set import AdapterSet
from serving.prefixes import MIN_SHARED, PrefixStore, Tokens, shared_length
from serving.spans import Span

LAYERS, HEADS, WIDTH = 2, 3, 4
PER_TOKEN = LAYERS * 2 * HEADS * WIDTH * 8
SETS: tuple[AdapterSet, ...] = ((), (("a", 1.0),), (("a", 0.5),), (("a", 0.5), ("b", 0.5)))


def _span(chosen: AdapterSet, tokens: Tokens) -> Callable[[int, int], Span]:
    """Keys and values that depend on the set and on all tokens up to each position, as real ones do."""
    marks = [hash((chosen, tokens[: at + 1])) % 10_007 for at in range(len(tokens))]

    def read(start: int, stop: int) -> Span:
        def part(layer: int, kind: int) -> torch.Tensor:
            line = torch.tensor(marks[start:stop], dtype=torch.float64) * 4 + layer * 2 + kind
            return line[None, :, None].expand(HEADS, -1, WIDTH)

        return tuple((part(layer, 0), part(layer, 1)) for layer in range(LAYERS))

    return read


def _check(store: PrefixStore, chosen: AdapterSet, tokens: Tokens, length: int) -> None:
    """What is found has this length and is the truth for these tokens and this set."""
    assert store.length(chosen, tokens) == length
    pieces = store.find(chosen, tokens)
    if length:
        expected = _span(chosen, tokens)(0, length)
        for layer in range(LAYERS):
            for kind in range(2):
                found = torch.cat([piece[layer][kind] for piece in pieces], dim=1)
                assert torch.equal(found, expected[layer][kind])
    else:
        assert pieces == []


# Few different tokens, so that texts part and join again everywhere.
texts = st.lists(st.integers(0, 1), min_size=MIN_SHARED, max_size=40).map(
    lambda tail: (7,) * (MIN_SHARED - 4) + tuple(tail)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SETS), texts), max_size=25), texts)
def test_without_a_budget_to_fear_everything_is_found_and_nothing_of_other_sets(
    added: list[tuple[AdapterSet, Tokens]], asked: Tokens
) -> None:
    store = PrefixStore(1 << 30)
    for at, (chosen, text) in enumerate(added):
        store.add(chosen, text, _span(chosen, text))
        for one in SETS:
            kept = [shared_length(asked, text) for other, text in added[: at + 1] if other == one]
            _check(store, one, asked, max(kept, default=0))
    for chosen, text in added:
        _check(store, chosen, text, len(text))
    different = {(*text[: at + 1], chosen) for chosen, text in added for at in range(len(text))}
    assert store.used_bytes == len(different) * PER_TOKEN  # what is shared is kept once


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 120), st.lists(st.tuples(st.sampled_from(SETS), texts), max_size=25))
def test_the_budget_holds_and_what_is_found_is_true(room: int, added: list[tuple[AdapterSet, Tokens]]) -> None:
    store = PrefixStore(room * PER_TOKEN)
    for chosen, text in added:
        store.add(chosen, text, _span(chosen, text))
        assert store.used_bytes <= store.budget_bytes
        stop = min(len(text), room)
        _check(store, chosen, text, store.length(chosen, text))
        assert store.length(chosen, text) >= (stop if stop >= MIN_SHARED else 0)  # the newest is there
    held = sum(node.tokens.__len__() for node in store._order)
    assert store.used_bytes == held * PER_TOKEN
    assert all(root.children for root in store._roots.values())


def _text(start: int, length: int = 20) -> Tokens:
    return tuple(range(start, start + length))


def test_the_least_recently_used_goes_first() -> None:
    store = PrefixStore(60 * PER_TOKEN)
    for start in (100, 200, 300):
        store.add((), _text(start), _span((), _text(start)))
    store.find((), _text(100))
    store.add((), _text(400), _span((), _text(400)))
    assert [store.length((), _text(start)) for start in (100, 200, 300, 400)] == [20, 0, 20, 20]


def test_a_shared_beginning_outlives_its_ends() -> None:
    store = PrefixStore(60 * PER_TOKEN)
    common = _text(100)
    for end in (1, 2, 3, 4, 5, 6):
        text = common + _text(1000 * end)
        store.add((), text, _span((), text))
        _check(store, (), text, 40)
        _check(store, (), (*common, 9), 20)
    assert store.used_bytes == 60 * PER_TOKEN


def test_a_text_longer_than_the_budget_keeps_its_beginning() -> None:
    store = PrefixStore(30 * PER_TOKEN + 5)
    store.add((), _text(0, 90), _span((), _text(0, 90)))
    _check(store, (), _text(0, 90), 30)


def test_short_texts_and_no_budget_keep_nothing() -> None:
    for store, text in ((PrefixStore(0), _text(0)), (PrefixStore(1 << 20), _text(0, MIN_SHARED - 1))):
        store.add((), text, _span((), text))
        assert (store.used_bytes, store.length((), text)) == (0, 0)


def test_what_is_kept_is_a_copy_and_what_goes_is_gone() -> None:
    source = torch.zeros(HEADS, 64, WIDTH, dtype=torch.float64)
    store = PrefixStore(40 * PER_TOKEN)
    read: Callable[[int, int], Span] = lambda start, stop: ((source[:, start:stop], source[:, start:stop]),) * LAYERS  # noqa: E731
    before = _tensors()
    for start in range(0, 2000, 50):
        store.add((("a", float(start)),), _text(start), read)
    source += 1
    assert all(float(keys.sum()) == 0 for piece in store.find((("a", 1950.0),), _text(1950)) for keys, _ in piece)
    assert _tensors() - before == 2 * LAYERS * 2
    store.clear()
    assert (_tensors() - before, store.used_bytes) == (0, 0)


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_shared_length_is_the_first_difference(first: list[int], second: list[int]) -> None:
    plain = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    assert shared_length(first, second) == (min(len(first), len(second)) if plain is None else plain)
