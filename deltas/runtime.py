"""What a runtime is: a server that loads adapters by rules of its own, and what these rules say about one adapter.

One file in `deltas/runtimes/` for each. A runtime is one function, decorated with `@runtime`, that looks at the facts
of an adapter (its header and config; no tensor is read) and yields what stands against loading the files as they are:

    @runtime("tgi", title="TGI", version="…", form="peft", rules=(Rule("rank", "…", "…", "…"), …), settings=…)
    def tgi(facts: Facts) -> Iterator[Finding]:
        if len(facts.ranks) > 1:
            yield Finding("rank", "its modules have ranks 2 to 8, …")

Every finding names one of the runtime's rules, and a rule says what an export does about it, or that nothing can be
done. Verdicts, exports and the documentation are all read from these; nothing is listed twice.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from deltas.adapter import Adapter
from deltas.architecture import Architecture
from deltas.errors import UnknownRuntime
from deltas.module import ModuleInfo

Form = Literal["peft", "gguf"]  # a PEFT folder, or one GGUF file


class Rule(NamedTuple):
    """One rule of a runtime, as its documentation shows it."""

    name: str
    says: str  # a sentence without a full stop, as the table of rules shows it
    source: str  # where it was read
    remedy: str | None  # what an export does about it; None: it cannot be exported


class Finding(NamedTuple):
    """A rule that an adapter breaks as it is, and the sentence that says how."""

    rule: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a verdict is made from: the adapter as its header and config describe it, and its base where it is known.

    `max_rank`: what modules of a larger rank are cut to before anything else is looked at.
    """

    adapter: Adapter
    base: Architecture | None = None
    max_rank: int | None = None

    @property
    def modules(self) -> tuple[ModuleInfo, ...]:
        return tuple(self.adapter.modules.values())

    @property
    def raw(self) -> Mapping[str, Any]:
        """The whole adapter_config.json."""
        return self.adapter.config.raw

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the modules, each once, ascending."""
        return tuple(sorted({self.rank_of(info) for info in self.modules}))

    def rank_of(self, info: ModuleInfo) -> int:
        """The module's rank once it is cut."""
        return info.rank if self.max_rank is None else min(info.rank, self.max_rank)

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(self.ranks, default=1)

    @property
    def announced_rank(self) -> int:
        """The largest rank that the config names, whether a module has it or not; `max_rank` holds for it too."""
        config = self.adapter.config
        named = max(self.rank, config.rank, *config.rank_pattern.values())
        return named if self.max_rank is None else min(named, self.max_rank)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The last parts of the modules' names, each once, sorted: q_proj, v_proj."""
        return tuple(sorted({info.name.rsplit(".", 1)[-1] for info in self.modules}))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a runtime loads an adapter and computes what it means.

    `reasons` say what stands against the files as they are, `changes` what an export does about it; `settings` are the
    server's own, as its command line or environment names them.
    """

    target: str
    version: str
    loads_unchanged: bool
    loads_after_export: bool
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def word(self) -> Literal["unchanged", "export", "no"]:
        """The verdict in one word."""
        if self.loads_unchanged:
            return "unchanged"
        return "export" if self.loads_after_export else "no"


Judge = Callable[[Facts], Iterator[Finding]]
Settings = Callable[[Facts, int], dict[str, Any]]  # (facts, the largest rank of what is loaded) → the server's settings
Fill = Callable[[Facts], list[str]]


def _nothing(facts: Facts) -> list[str]:
    return []


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """`fill`: the modules that an adapter leaves out and that an export fills with zeros."""

    name: str
    title: str
    version: str
    form: Form
    rules: tuple[Rule, ...]
    judge: Judge
    settings: Settings
    fill: Fill

    def findings(self, facts: Facts) -> list[Finding]:
        """What stands against loading the adapter's files as they are."""
        return list(self.judge(facts))

    def blocking(self, findings: list[Finding]) -> list[Finding]:
        """Those of these findings that an export can do nothing about."""
        remedies = {rule.name: rule.remedy for rule in self.rules}
        return [finding for finding in findings if remedies[finding.rule] is None]

    def verdict(self, facts: Facts) -> Verdict:
        """What these rules say about one adapter."""
        findings = self.findings(facts)
        broken = {finding.rule for finding in findings}
        blocked = bool(self.blocking(findings))
        changes = [rule.remedy for rule in self.rules if rule.name in broken and rule.remedy is not None]
        return Verdict(
            target=self.name,
            version=self.version,
            loads_unchanged=not findings,
            loads_after_export=not blocked,
            reasons=tuple(finding.sentence for finding in findings),
            changes=() if blocked else tuple(changes),
            settings={} if blocked else self.settings(facts, facts.rank if findings else facts.announced_rank),
        )


_RUNTIMES: dict[str, Runtime] = {}


def runtime(
    name: str,
    *,
    title: str,
    version: str,
    form: Form,
    rules: tuple[Rule, ...],
    settings: Settings,
    fill: Fill = _nothing,
) -> Callable[[Judge], Judge]:
    """Register the function that judges for a runtime. `version`: of the runtime, from which its rules were read."""

    def register(judge: Judge) -> Judge:
        _RUNTIMES[name] = Runtime(name, title, version, form, rules, judge, settings, fill)
        return judge

    return register


@cache
def runtimes() -> Mapping[str, Runtime]:
    """All runtimes by name, sorted; importing `deltas/runtimes/` registers them."""
    package = importlib.import_module("deltas.runtimes")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"deltas.runtimes.{module.name}")
    return dict(sorted(_RUNTIMES.items()))


def resolve_runtime(name: str) -> Runtime:
    """The runtime called `name`. Raises UnknownRuntime, naming the known ones."""
    known = runtimes()
    if name not in known:
        raise UnknownRuntime(name, list(known))
    return known[name]
