"""Do the work of the design, skipping what the ledger and the work folder hold already.

Adapters live in the work folder and appear there whole; every evaluation is one row of the ledger. So a run may be
killed anywhere and started again, and a method that is new costs its own evaluations only.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.quality.candidates import Candidate, candidates, merge
from benchmarks.quality.design import KINDS, Block, Kind, members
from benchmarks.quality.ledger import Key, Ledger, Right, Row
from benchmarks.quality.lowrank import Slots, Update, norm, update_of
from benchmarks.quality.packing import Row as Packed
from benchmarks.quality.packing import right, rows
from benchmarks.quality.routing import CENTRE_EXAMPLES, features, route
from benchmarks.quality.scales import STEP, climb
from benchmarks.quality.splits import Split
from benchmarks.quality.training import Course, save, train
from deltas.adapter import Adapter
from deltas.factors import Factors
from merging.recipe import ENGINE_VERSION

BOTH = ("validation", "test")


class Bench:
    """The measuring of one base model.

    `load` gives a fresh copy of the base; `splits` the examples of every task under a seed, in the tasks' order.
    """

    def __init__(
        self,
        *,
        base_name: str,
        load: Callable[[], Any],
        splits: Callable[[int], Mapping[str, Split]],
        folder: Path,
        ledger: Ledger,
        log: Callable[[str], None],
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self.base_name, self.load, self.folder, self.ledger, self.log = base_name, load, folder, ledger, log
        self.kinds = kinds
        self.splits = cache(splits)
        self.slots = Slots(load())
        self._packed = cache(self._pack)
        self._features = cache(self._feature)

    def measure(self, block: Block, wanted: Callable[[Candidate], bool] = lambda _: True) -> None:
        """All of a block that is wanted."""
        if block.part == "joint":
            self.joint(block)
            return
        self.references(block)
        for candidate in candidates():
            if candidate.default == (block.part == "methods") and wanted(candidate):
                self.merged(block, candidate)
        if block.part == "methods":
            self.exact(block)
            self.routing(block)

    def adapters(self, block: Block) -> None:
        """The own adapters of the group, trained where they are missing, and nothing measured."""
        for task in members(tuple(self.splits(block.seed)), block.group, block.seed):
            self.single(block, task)

    def references(self, block: Block) -> None:
        """The base model, and every own adapter of the group, on all tasks: what merges are compared with."""
        everything = tuple(self.splits(block.seed))
        for split in BOTH:
            self._evaluate(Key(block.seed, "", "", "base", split), everything, dict)
        for task in members(everything, block.group, block.seed):
            for split in BOTH:
                key = Key(block.seed, block.kind, "", f"own:{task}", split)
                self._evaluate(key, everything, partial(self._single_update, block, task))

    def merged(self, block: Block, candidate: Candidate) -> None:
        """One method at the common rank."""
        rank, work = self.rank(block), self.folder / "merging"
        self._scaled(
            block,
            f"merge:{candidate.name}",
            candidate.options,
            lambda sources: merge(candidate, sources, rank, block.seed, work),
        )

    def exact(self, block: Block) -> None:
        """The sum of all updates at all their ranks together, which shows the price of the common rank."""
        plain, work = candidates()[0], self.folder / "merging"
        self._scaled(
            block,
            "exact",
            plain.options,
            lambda sources: merge(plain, sources, sum(one.config.rank for one in sources), block.seed, work),
        )

    def _scaled(
        self, block: Block, subject: str, options: str, make: Callable[[list[Adapter]], dict[str, Factors]]
    ) -> None:
        """The best scale on the validation split, and the test split at that scale."""
        tasks = members(tuple(self.splits(block.seed)), block.group, block.seed)

        @cache
        def made() -> tuple[Update, float]:
            sources = [self.single(block, task) for task in tasks]
            size = (sum(norm(update_of(one)) ** 2 for one in sources) / len(sources)) ** 0.5
            update = make(sources)
            # Nothing can be scaled up from nothing: such a merge is the base, at every step.
            return update, (norm(update) / size or 1.0)

        def measure(split: str, step: int) -> Row:
            key = Key(block.seed, block.kind, block.group, subject, split, step, options)
            return self._evaluate(key, tasks, lambda: made()[0], lambda: STEP**step / made()[1])

        own = self._own_accuracies(block, tasks, "validation")
        try:
            best = climb(lambda step: normalised(measure("search", step).right, own))
            measure("test", best)
        except Exception as error:  # whatever one method does wrong, the night's run goes on; the report says so
            refusal = Key(block.seed, block.kind, block.group, subject, "refused", None, options)
            row = Row(refusal, {}, {"why": f"{type(error).__name__}: {error}"})
            if self.ledger.rows.get(refusal) != row:
                self.ledger.add(row)
            self.log(f"  {subject}: {error}")

    def joint(self, block: Block) -> None:
        """One adapter trained on all tasks of the group together, at the merges' rank."""
        splits = self.splits(block.seed)
        tasks = members(tuple(splits), block.group, block.seed)

        def made() -> Update:
            folder = self.folder / "adapters" / block.kind / str(block.seed) / f"joint-{block.group}"
            course = self.kinds[block.kind].joint(len(tasks), self.rank(block))
            return update_of(self._adapter(folder, course, tasks, block.seed))

        self._evaluate(Key(block.seed, block.kind, block.group, "joint", "test"), tasks, made)

    def routing(self, block: Block) -> None:
        """Which adapter of the group each test prompt is sent to."""
        tasks = members(tuple(self.splits(block.seed)), block.group, block.seed)
        key = Key(block.seed, "", block.group, "routing", "test")
        if key in self.ledger.rows:
            return
        self.slots.use({})
        centres = {task: self._features(block.seed, task, "training") for task in tasks}
        chosen = {task: route(centres, self._features(block.seed, task, "test")) for task in tasks}
        found: Right = {task: tuple(tasks[one] == task for one in chosen[task]) for task in tasks}
        self.ledger.add(Row(key, found, {"tasks": list(tasks), "chosen": chosen}))

    def single(self, block: Block, task: str) -> Adapter:
        """The adapter of one task, trained if it is not there."""
        place = list(self.splits(block.seed)).index(task)
        folder = self.folder / "adapters" / block.kind / str(block.seed) / task
        return self._adapter(folder, self.kinds[block.kind].single(place), (task,), block.seed)

    def _single_update(self, block: Block, task: str) -> Update:
        return update_of(self.single(block, task))

    def rank(self, block: Block) -> int:
        """The common rank of all merges of the block: the largest of its sources."""
        everything = tuple(self.splits(block.seed))
        kind = self.kinds[block.kind]
        return max(kind.rank(everything.index(task)) for task in members(everything, block.group, block.seed))

    def _adapter(self, folder: Path, course: Course, tasks: Sequence[str], seed: int) -> Adapter:
        if not folder.is_dir():
            self.log(f"training {folder.relative_to(self.folder)}")
            splits = self.splits(seed)
            validation = [row for task in tasks for row in self._packed(seed, task, "validation")]
            training = [splits[task].training for task in tasks]
            tuned = train(self.load(), course, training, validation, seed, lambda text: self.log(f"  {text}"))
            save(tuned, self.base_name, folder)
        return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")

    def _evaluate(
        self,
        key: Key,
        tasks: Sequence[str],
        update: Callable[[], Update],
        scale: Callable[[], float] = lambda: 1.0,
    ) -> Row:
        if key not in self.ledger.rows:
            factor = scale()
            self.slots.use(update(), factor)
            found: Right = {
                task: tuple(
                    answer for row in self._packed(key.seed, task, key.split) for answer in right(self.slots.model, row)
                )
                for task in tasks
            }
            mean = sum(sum(bits) / len(bits) for bits in found.values()) / len(found)
            self.log(f"{key.subject} {key.split}{'' if key.step is None else f' {key.step:+d}'}: {100 * mean:.1f} %")
            notes = {"scale": factor, "engine": ENGINE_VERSION} if key.step is not None else {}
            self.ledger.add(Row(key, found, notes))
        return self.ledger.rows[key]

    def _own_accuracies(self, block: Block, tasks: Sequence[str], split: str) -> dict[str, float]:
        rows = {t: self.ledger.rows[Key(block.seed, block.kind, "", f"own:{t}", split)] for t in tasks}
        return {task: sum(row.right[task]) / len(row.right[task]) for task, row in rows.items()}

    def _pack(self, seed: int, task: str, split: str) -> list[Packed]:
        return rows(getattr(self.splits(seed)[task], split))

    def _feature(self, seed: int, task: str, split: str) -> Tensor:
        prompts = getattr(self.splits(seed)[task], split)
        return features(self.slots.model, prompts[:CENTRE_EXAMPLES] if split == "training" else prompts)


def normalised(found: Right, own: Mapping[str, float]) -> float:
    """The mean over tasks of accuracy ÷ the own adapter's accuracy."""
    return sum(sum(bits) / len(bits) / own[task] for task, bits in found.items()) / len(found)
