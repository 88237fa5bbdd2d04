"""A registry of any size, made by COPY: adapters with Zipf-like names, bases, tags and cards, three versions each.

What the service would have written for each adapter is written, listings and their grams included, by rules that do
not depend on the order of the work: adapter number i is the same in every registry of the same size. Indexes that a
load of this size would only slow down are dropped before it and made again after it.
"""

import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import make_url

from store.shelving import folded_text, grams, tag_term, target_term

VERSIONS = 3  # of each adapter, on average and exactly
MERGED_SHARE = 5  # one adapter in so many is a merge of others, up to DEPTH generations deep
DEPTH = 8
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
BASES = [f"lab{i % 7}/base-{i}-{size}" for i, size in zip(range(24), itertools.cycle(("1b", "3b", "8b", "70b")))]
RANKS = (8, 16, 4, 32, 64, 2, 128, 12, 24, 6)
TARGETS = (
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("query_key_value",),
    ("in_proj", "out_proj"),
    ("c_attn",),
    ("w1", "w2", "w3"),
)
WORD_COUNT = 40_000
CARDS, CARD_WORDS = 20_000, 40  # so many different cards, of so many words on average
COPIED = (
    "adapters",
    "recipes",
    "versions",
    "version_files",
    "version_targets",
    "tags",
    "aliases",
    "lineage",
    "listings",
)
BATCH = 50_000
TERMS = (
    "INSERT INTO listing_terms SELECT unnest(terms), namespace, name, adapter_id, base_model, rank_min, rank_max"
    " FROM listings ORDER BY 1, 2, 3"
)
DROPPED = ("ix_listings_found_by", "ix_listings_ranks")


def words() -> list[str]:
    """A vocabulary of pronounceable words, the most frequent first."""
    rng = random.Random(7)
    starts = ("b", "d", "f", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "pr")
    ends = ("n", "r", "s", "l", "t", "")
    made: dict[str, None] = {}
    while len(made) < WORD_COUNT:
        syllables = (rng.choice(starts) + rng.choice("aeiou") + rng.choice(ends) for _ in range(rng.randint(1, 4)))
        made["".join(syllables)] = None
    return list(made)


def falling(rng: random.Random, count: int) -> int:
    """An index below `count` whose frequency falls roughly as 1/index."""
    return min(count - 1, int(count ** rng.random()) - 1)


def cards(vocabulary: Sequence[str]) -> list[tuple[str, frozenset[int]]]:
    """The texts that adapters have as cards, and the grams of each."""
    rng = random.Random(11)
    texts = [
        " ".join(vocabulary[falling(rng, WORD_COUNT)] for _ in range(rng.randint(10, 2 * CARD_WORDS - 10)))
        for _ in range(CARDS)
    ]
    return [(text, frozenset(grams(text))) for text in texts]


class Adapter:
    """All that adapter number i is."""

    def __init__(self, i: int, count: int, vocabulary: Sequence[str]) -> None:
        rng = random.Random(i)
        self.i = i
        self.id = key("a", i)
        # Numbers in the names, so that each is there once; words before them, so that they are not in order.
        self.namespace = f"{vocabulary[falling(rng, 2000)]}-{falling(rng, max(2, count // 20))}"
        self.name = f"{vocabulary[falling(rng, WORD_COUNT)]}-{i}"
        self.base = BASES[falling(rng, len(BASES))]
        rank = RANKS[falling(rng, len(RANKS))]
        self.ranks = (rank, rank) if rng.random() < 0.9 else (max(1, rank // 2), rank)
        self.targets = TARGETS[falling(rng, len(TARGETS))]
        self.tags = sorted({vocabulary[falling(rng, 5000)] for _ in range(rng.randint(0, 4))})
        self.card = rng.randrange(CARDS)
        self.alias = rng.randint(1, VERSIONS) if rng.random() < 0.5 else None
        # Merges are made of lower numbers one generation above them; a chain of merges is DEPTH long at most.
        self.generation = (i // MERGED_SHARE) % DEPTH if i % MERGED_SHARE == 0 and i > MERGED_SHARE * DEPTH else 0
        self.parents: list[int] = []
        if self.generation:
            # One is the merge before it, which is a generation older; the others are uploads.
            uploads = (drawn + (drawn % MERGED_SHARE == 0) for drawn in rng.sample(range(1, i), 3))
            self.parents = [i - MERGED_SHARE, *uploads]


def key(kind: str, i: int, number: int = 0) -> str:
    """An id of 26 characters."""
    return f"{kind}{number}{i:024d}"


def digest(i: int, number: int) -> str:
    """What stands for the sha256 of a version."""
    return f"{number:04x}{i:060x}"


def rows(first: int, last: int, count: int, vocabulary: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Table and row, for every row of the adapters from `first` to before `last`."""
    known_cards = cards(vocabulary)
    for i in range(first, last):
        one = Adapter(i, count, vocabulary)
        at = EPOCH + timedelta(seconds=i)
        card, of_card = known_cards[one.card]
        yield "adapters", (one.id, one.namespace, one.name, at, VERSIONS, VERSIONS)
        for number in range(1, VERSIONS + 1):
            yield from version_rows(one, number, at, count, vocabulary, card)
        yield from (("tags", (one.id, tag)) for tag in one.tags)
        if one.alias is not None:
            yield "aliases", (one.id, "production", key("v", i, one.alias), at)
        folded = folded_text(one.namespace, one.name, one.base, one.tags, card)
        terms = sorted([*map(target_term, one.targets), *map(tag_term, one.tags)])
        of_rest = grams(folded_text(one.namespace, one.name, one.base, one.tags, None))
        found_by = f"{{{','.join(map(str, sorted(of_card.union(of_rest))))}}}"
        yield "listings", (one.id, one.namespace, one.name, VERSIONS, one.base, *one.ranks, terms, folded, found_by, 1)


def version_rows(
    one: Adapter, number: int, at: datetime, count: int, vocabulary: Sequence[str], card: str
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The rows of one version."""
    i, version_id = one.i, key("v", one.i, number)
    merged = bool(one.parents) and number == VERSIONS
    recipe = f"{i:064x}" if merged else None
    parents = [Adapter(parent, count, vocabulary) for parent in one.parents] if merged else []
    weights = [round(0.5 / (position + 1), 3) for position in range(len(parents))]
    leaves = None
    if merged:
        yield "recipes", (recipe, json.dumps({"method": "sum", "rank": 16}), at)
        leaves = json.dumps(
            [
                [f"{parent.namespace}/{parent.name}@{VERSIONS}", weight, ["sum"], ["source"]]
                for parent, weight in zip(parents, weights, strict=True)
            ]
        )
    yield "versions", (
        version_id, one.id, number, digest(i, number), at + timedelta(milliseconds=number), "lora", one.base, None,
        "name", *one.ranks, "{}", 16.0, 16.0, "{}", 1.0, 2.0, False, 60, 460_800, "bfloat16", 1_900_000, "apache-2.0",
        card, True, True, "[]", 1, "{}", "merge" if merged else "upload", recipe, leaves, None,
    )  # fmt: skip
    yield "version_files", (version_id, "adapter_config.json", digest(i, 100), 700)
    yield "version_files", (version_id, "adapter_model.safetensors", digest(i, 200 + number), 1_900_000)
    yield from (("version_targets", (version_id, target)) for target in one.targets)
    for position, (parent, weight) in enumerate(zip(parents, weights, strict=True)):
        ref = f"{parent.namespace}/{parent.name}@{VERSIONS}"
        yield "lineage", (version_id, position, key("v", parent.i, VERSIONS), ref, weight, "source")


COLUMNS = {
    "versions": "id adapter_id number digest created_at family base_model base_fingerprint base_matched_by rank_min"
    " rank_max rank_pattern alpha_min alpha_max alpha_pattern scale_min scale_max use_rslora modules parameters dtype"
    " size_bytes license card mergeable servable notes judged metrics origin recipe_digest leaves report",
    "adapters": "id namespace name created_at last_number latest_number",
    "recipes": "digest recipe created_at",
    "version_files": "version_id filename digest size_bytes",
    "version_targets": "version_id suffix",
    "tags": "adapter_id tag",
    "aliases": "adapter_id alias version_id updated_at",
    "lineage": "child_id position parent_id parent_ref weight role",
    "listings": "adapter_id namespace name number base_model rank_min rank_max terms folded grams written",
}


def copy_part(url: str, first: int, last: int, count: int) -> None:
    """Write the rows of some adapters, BATCH rows at a time, each table by COPY."""
    vocabulary = words()
    with psycopg.connect(connection_url(url), autocommit=False) as connection:
        # Parents are written by other parts at other times: what refers to what was made right by the rules above.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        made = rows(first, last, count, vocabulary)
        for batch in iter(lambda: list(itertools.islice(made, BATCH)), []):
            of_table: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COPIED}
            for table, row in batch:
                of_table[table].append(row)
            for table, lines in of_table.items():
                columns = ", ".join(COLUMNS[table].split())
                with connection.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                    for line in lines:
                        copy.write_row(line)
            connection.commit()


def connection_url(url: str) -> str:
    """The URL as psycopg reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def fill(url: str, count: int, processes: int) -> dict[str, float]:
    """Fill a migrated, empty database; seconds of each step."""
    took: dict[str, float] = {}
    began = time.perf_counter()
    with psycopg.connect(connection_url(url), autocommit=True) as connection:
        made_by = dict(
            connection.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'listings'").fetchall()
        )
        for index in DROPPED:
            connection.execute(f"DROP INDEX {index}")
        connection.execute("ALTER TABLE listings DISABLE TRIGGER USER")  # for each row, what TERMS does for all
        for base in BASES:
            connection.execute("INSERT INTO base_models VALUES (%s, %s, '{}', '{}', now())", (base, base))
    bounds = [1 + count * part // processes for part in range(processes + 1)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(copy_part, [(url, a, b, count) for a, b in itertools.pairwise(bounds)])
    took["copy"] = time.perf_counter() - began
    with psycopg.connect(connection_url(url), autocommit=True) as connection:
        connection.execute("SET maintenance_work_mem = '1GB'")
        for index in DROPPED:
            began = time.perf_counter()
            connection.execute(made_by[index])
            took[index] = time.perf_counter() - began
        began = time.perf_counter()
        connection.execute(TERMS)
        connection.execute("ALTER TABLE listings ENABLE TRIGGER USER")
        took["listing_terms"] = time.perf_counter() - began
        began = time.perf_counter()
        connection.execute("CLUSTER listings USING uq_listings_namespace_name")
        took["cluster"] = time.perf_counter() - began
        began = time.perf_counter()
        connection.execute("VACUUM ANALYZE")
        took["vacuum analyze"] = time.perf_counter() - began
    return took
