"""What lists and searches go by, written in the transaction that changes it: the listing of an adapter.

A listing repeats what other tables say, in the form that a list query can find with one index: the latest version's
base model, ranks and targets, the tags, and all text that a search looks at, already in lower case (Python's, so that
every database folds alike).
"""

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.models import AdapterRow, ListingRow, TagRow, VersionRow, VersionTargetRow

_LONGEST_GRAM = 5
"""Long enough that few texts have all runs of a word and not the word; three, as trigrams are, make lists so long that
most of a search went into intersecting them."""
_STEP = 3
_WORDS_KEPT = 1 << 16


def target_term(suffix: str) -> str:
    """The term by which adapters that change such modules are found."""
    return f"target:{suffix}"


def tag_term(tag: str) -> str:
    """The term by which adapters with this tag are found."""
    return f"tag:{tag}"


def grams(folded: str) -> list[int]:
    """Every run of one to five characters within a word, each once, hashed to what a 4-byte column takes.

    A word that is searched for has no space in it, so no run with one is ever asked for. Two runs that share a hash
    make a search look at a few more texts, no more: what it finds is compared in full.
    """
    return sorted(set[int]().union(*map(_runs, folded.split())))


def word_grams(word: str) -> list[int]:
    """Grams that every text with this word in it has: longest ones, as many as cover it and overlap by two characters.
    With all of them hardly anything more is told apart, and each is a list to go through."""
    length = min(_LONGEST_GRAM, len(word))
    last = len(word) - length
    return sorted({_hash(word[start : start + length]) for start in (*range(0, last, _STEP), last)})


def folded_text(namespace: str, name: str, base_model: str | None, tags: Iterable[str], card: str | None) -> str:
    """All that a search looks at, in one case, and without the one character that PostgreSQL does not take."""
    return "\n".join([f"{namespace}/{name}", base_model or "", *tags, card or ""]).casefold().replace("\x00", " ")


def shelve(session: Session, adapter: AdapterRow, *, indexed: bool) -> None:
    """Bring the adapter's listing to date, or remove it when no version is left; `indexed`: with its grams."""
    session.flush()
    listing = session.get(ListingRow, adapter.id)
    if adapter.latest_number is None:
        if listing is not None:
            session.delete(listing)
        return
    latest = session.execute(
        select(VersionRow.id, VersionRow.base_model, VersionRow.rank_min, VersionRow.rank_max, VersionRow.card).where(
            VersionRow.adapter_id == adapter.id, VersionRow.number == adapter.latest_number
        )
    ).one()
    tags: Sequence[str] = session.scalars(
        select(TagRow.tag).where(TagRow.adapter_id == adapter.id).order_by(TagRow.tag)
    ).all()
    targets = session.scalars(select(VersionTargetRow.suffix).where(VersionTargetRow.version_id == latest.id))
    if listing is None:
        listing = ListingRow(adapter_id=adapter.id, namespace=adapter.namespace, name=adapter.name, written=0)
        session.add(listing)
    listing.number = adapter.latest_number
    listing.written += 1
    listing.base_model = latest.base_model
    listing.rank_min, listing.rank_max = latest.rank_min, latest.rank_max
    listing.terms = sorted([*map(target_term, targets), *map(tag_term, tags)])
    listing.folded = folded_text(adapter.namespace, adapter.name, latest.base_model, tags, latest.card)
    listing.grams = grams(listing.folded) if indexed else []


@lru_cache(maxsize=_WORDS_KEPT)
def _runs(word: str) -> frozenset[int]:
    """The grams of one word; kept, since words repeat more than texts do."""
    return frozenset(
        _hash(word[start : start + length])
        for length in range(1, _LONGEST_GRAM + 1)
        for start in range(len(word) - length + 1)
    )


def _hash(run: str) -> int:
    unsigned = zlib.crc32(run.encode())
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned
