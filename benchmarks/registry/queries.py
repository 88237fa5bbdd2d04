"""What is asked of a filled registry, by the same rules that filled it: questions whose answers are known to exist."""

import random
from collections.abc import Callable, Sequence

from benchmarks.registry.filling import BASES, DEPTH, MERGED_SHARE, RANKS, TARGETS, VERSIONS, Adapter, falling, words
from store.cursors import encode_cursor
from store.registry import Registry

Question = Callable[[], object]


class Questions:
    """Random questions to one registry of `count` adapters; each kind returns a call that is ready to be timed."""

    def __init__(self, registry: Registry, count: int, seed: int, vocabulary: Sequence[str] | None = None) -> None:
        self.registry = registry
        self.count = count
        self.rng = random.Random(seed)
        self.vocabulary = words() if vocabulary is None else vocabulary

    def kinds(self) -> dict[str, Callable[[], Question]]:
        """Name of the kind -> maker of questions."""
        return {
            "list, first page of 50": self.first_page,
            "list, a page of 50 somewhere": self.later_page,
            "filter: base model": self.base,
            "filter: rank": self.rank,
            "filter: target": self.target,
            "filter: tag": self.tag,
            "filter: base, rank, target and tag": self.everything,
            "text: a frequent word": lambda: self.text(self.vocabulary[self.rng.randrange(10)]),
            "text: any word": lambda: self.text(self.vocabulary[falling(self.rng, len(self.vocabulary))]),
            "text: a rare word": lambda: self.text(self.vocabulary[self.rng.randrange(20_000, len(self.vocabulary))]),
            "text: part of one name": self.name_part,
            "text: two words": self.two_words,
            "text: nothing has it": lambda: self.text(f"qx{self.rng.randrange(10**6)}zj"),
            "resolve an alias": self.alias,
            "resolve a version": self.version,
            "resolve a digest": self.digest,
            "one adapter": self.one,
            "lineage of a merge": self.lineage,
            "all of these, mixed": self.mixed,
        }

    def mixed(self) -> Question:
        """A question of any of the other kinds, each as often."""
        *others, _ = self.kinds().values()
        return self.rng.choice(others)()

    def adapter(self) -> Adapter:
        """Any adapter."""
        return Adapter(self.rng.randint(1, self.count), self.count, self.vocabulary)

    def first_page(self) -> Question:
        """The list, from its beginning."""
        return lambda: self.registry.list_adapters(limit=50)

    def later_page(self) -> Question:
        """The list, from a place in it."""
        one = self.adapter()
        cursor = encode_cursor("adapters", (one.namespace, one.name))
        return lambda: self.registry.list_adapters(limit=50, cursor=cursor)

    def base(self) -> Question:
        """Adapters of a base model, frequent or rare alike."""
        base = self.rng.choice(BASES)
        return lambda: self.registry.list_adapters(base_model=base)

    def rank(self) -> Question:
        """Adapters of a rank."""
        rank = self.rng.choice(RANKS)
        return lambda: self.registry.list_adapters(rank=rank)

    def target(self) -> Question:
        """Adapters that change a kind of module."""
        target = self.rng.choice(self.rng.choice(TARGETS))
        return lambda: self.registry.list_adapters(target=target)

    def tag(self) -> Question:
        """Adapters with a tag, frequent ones more often."""
        tag = self.vocabulary[falling(self.rng, 5000)]
        return lambda: self.registry.list_adapters(tag=tag)

    def everything(self) -> Question:
        """All filters at once, as one adapter passes them."""
        one = self.adapter()
        tag = one.tags[0] if one.tags else None
        return lambda: self.registry.list_adapters(
            base_model=one.base, rank=one.ranks[1], target=one.targets[0], tag=tag
        )

    def text(self, word: str) -> Question:
        """Adapters whose text has a word in it."""
        return lambda: self.registry.list_adapters(q=word)

    def name_part(self) -> Question:
        """The end of a name and the beginning: a number that few have."""
        one = self.adapter()
        return lambda: self.registry.list_adapters(q=one.name[1:])

    def two_words(self) -> Question:
        """A tag and part of a name of one adapter."""
        one = self.adapter()
        return lambda: self.registry.list_adapters(q=f"{one.namespace.upper()} {one.base}")

    def alias(self) -> Question:
        """namespace/name:production."""
        while (one := self.adapter()).alias is None:
            continue
        return lambda: self.registry.resolve(f"{one.namespace}/{one.name}:production")

    def version(self) -> Question:
        """namespace/name@2."""
        one, number = self.adapter(), self.rng.randint(1, VERSIONS)
        return lambda: self.registry.resolve(f"{one.namespace}/{one.name}@{number}")

    def digest(self) -> Question:
        """sha256:…"""
        number, i = self.rng.randint(1, VERSIONS), self.rng.randint(1, self.count)
        return lambda: self.registry.resolve(f"sha256:{number:04x}{i:060x}")

    def one(self) -> Question:
        """An adapter as lists show it."""
        one = self.adapter()
        return lambda: self.registry.get_adapter(one.namespace, one.name)

    def lineage(self) -> Question:
        """All ancestors of a merge, some generations deep."""
        step = MERGED_SHARE * DEPTH
        i = self.rng.randrange(2, self.count // step) * step + MERGED_SHARE * self.rng.randrange(DEPTH)
        one = Adapter(i, self.count, self.vocabulary)
        version = self.registry.resolve(f"{one.namespace}/{one.name}@{VERSIONS}")
        return lambda: self.registry.lineage(version)
