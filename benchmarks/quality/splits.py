"""Training, validation and test examples of a task: cut by the seed, balanced over the labels as far as they last."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.quality.packing import Encoded, encode
from benchmarks.quality.tasks import Pairs, Task

TEST, VALIDATION, TRAINING = 100, 60, 1500
SEARCH = 40  # of the validation examples, for the search for a merge's size
HELD_OUT_SHARE = 0.3  # at most this share of a label's examples is held out, so that rare labels can be learned


@dataclass(frozen=True, slots=True)
class Split:
    """The examples of one task under one seed; no input is in two of the parts."""

    training: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    test: tuple[Encoded, ...]

    @property
    def search(self) -> tuple[Encoded, ...]:
        """The validation examples that a merge's size is searched on."""
        return self.validation[:SEARCH]


def cut(pairs: Pairs, rng: Random) -> tuple[Pairs, Pairs, Pairs]:
    """(training, validation, test)."""
    shuffled = rng.sample(pairs, len(pairs))
    by_label: dict[str, Pairs] = defaultdict(list)
    for pair in shuffled:
        by_label[pair[1]].append(pair)
    # Labels take turns, the held-out share of each bounded; then a shuffle, so that test and validation look alike.
    turns = [
        (turn, label, pair)
        for label, mine in by_label.items()
        for turn, pair in enumerate(mine[: int(HELD_OUT_SHARE * len(mine))])
    ]
    held_out = [pair for _, _, pair in sorted(turns)[: TEST + VALIDATION]]
    if len(held_out) < TEST + VALIDATION:
        raise ValueError(f"{len(pairs)} examples are too few to hold {TEST + VALIDATION} out")
    rng.shuffle(held_out)
    kept_out = set(held_out)
    training = [pair for pair in shuffled if pair not in kept_out][:TRAINING]
    return training, held_out[TEST:], held_out[:TEST]


def make_split(task: Task, pairs: Pairs, seed: int, tokenize: Callable[[str], list[int]]) -> Split:
    """One task's examples under one seed, as tokens."""

    def tokens(part: Pairs) -> tuple[Encoded, ...]:
        return tuple(encode(tokenize, task.stem, task.prompt(text), task.labels, label) for text, label in part)

    training, validation, test = cut(pairs, Random(f"{task.name} {seed}"))
    return Split(tokens(training), tokens(validation), tokens(test))
