"""Run a plan: module by module, a few at a time, finished modules journalled, the result written as a stream.

Each worker thread holds one module: its sources' factors, their joint bases, the method's
result, the report's figures. BLAS runs on one thread in each: on matrices this small, more threads only wait
for each other. The result's bytes depend on the plan alone, whatever the number of workers and interruptions.

Under a rank budget there are two passes: the first journals every module's spectrum; from all of them the ranks are
chosen; the second merges each module just as if the recipe had asked for its rank.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltas.adapter import Reading
from deltas.dense import truncate_dense
from deltas.errors import NonFiniteTensor
from deltas.factors import Factors, Spectrum, check_finite
from deltas.joint import Joint, joint_bases
from merging.budget import Allocation, water_fill
from merging.config import peft_config
from merging.errors import BadRank, MergeCancelled
from merging.family_export import write_family
from merging.journal import Journal, Record
from merging.method import Merged, ModuleInputs
from merging.module_cache import ModuleCache
from merging.output import TORCH_DTYPES, file_ranks, tensor_bytes, write_result
from merging.plan import Plan, PlannedModule
from merging.ranks import Budget, plain_rank
from merging.report import measure_module, published, summarise
from merging.spectra import ModuleSpectra, is_kept, unpack

POLL_S = 0.1
ZERO = 1e-9  # of the sources' norms: below it a singular value is rounding


@dataclass(frozen=True, slots=True, eq=False)
class MergeResult:
    """The merged adapter: its adapter_config.json, the path of its weights, its report, a tokenizer if it has one.
    `phases`: the seconds that its stages took, in their order."""

    config: dict[str, Any]
    weights: Path
    report: dict[str, Any]
    tokenizer: bytes | None = None  # tokenizer.json, where sources' tokens were united
    phases: Mapping[str, float] = field(default_factory=dict)


def run_merge(
    plan: Plan,
    folder: Path,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: ModuleCache | None = None,
) -> MergeResult:
    """Do what the plan says, in the scratch folder `folder` (made if absent).

    Called again on the same folder after a kill, it takes over the modules that were finished. With a `cache`, modules
    that another merge finished before are taken from there: the same bytes, without the work. `on_progress(done,
    total)` and `cancelled()` are called from the calling thread, at least ten times a second.

    Raises:
        MergeCancelled: between two modules, once `cancelled()` is true.
        NonFiniteTensor: if a source or the result holds NaN or Inf, naming the module.
        BadRank: if a budget has nothing to be spent on, since the result is zero everywhere.
        OSError: as the file system says (a full disk, for example).
    """
    started = time.perf_counter()
    phases: dict[str, float] = {}
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "modules.journal", _plan_id(plan))
    try:
        resumed = len(journal.records)
        with _one_blas_thread():
            spent = None
            if isinstance(plan.rank, Budget):
                _run_modules(plan, journal, journal.spectra, _find_spectra, workers, on_progress, cancelled)
                phases["spectra"] = time.perf_counter() - started
                own = [unpack(*journal.read_spectra(m.name)).own for m in plan.modules]
                spent = spend(plan, plan.rank, own)
                plan = plan.with_ranks(spent.ranks)
            work = partial(_do_module, cache=cache)
            _run_modules(plan, journal, journal.records, work, workers, on_progress, cancelled)
        phases["modules"] = time.perf_counter() - started - sum(phases.values())
        weights = folder / "adapter_model.safetensors"
        family = write_family(plan, weights) if plan.recipe.export == "family" else None
        extras = [] if family else write_result(plan, journal, weights)
        phases["write"] = time.perf_counter() - started - sum(phases.values())
        reports = {m.name: journal.records[m.name].head["report"] for m in plan.modules}
        details = {m.name: journal.records[m.name].head["details"] for m in plan.modules}
        reused = sum("reused" in record.head for record in journal.records.values())
    finally:
        journal.close()
    report = {
        **compose_report(plan, reports, details, spent),
        "extras": extras,
        "seconds": time.perf_counter() - started,
        "modules_resumed": resumed,
        "modules_reused": reused,
    }
    ranks = {name: module["rank"] for name, module in reports.items()}
    tokenizer = plan.vocabulary.file() if plan.vocabulary else None
    return MergeResult(family or peft_config(plan, file_ranks(plan, ranks)), weights, report, tokenizer, phases)


def compose_report(
    plan: Plan,
    reports: Mapping[str, dict[str, Any]],
    details: Mapping[str, Mapping[str, Any]],
    spent: Allocation | None,
) -> dict[str, Any]:
    """The report of a merge whose modules have these figures (`measure_module`) and details of their method; `spent`:
    the ranks that a budget bought."""
    members = {m.name: m.sources for m in plan.modules}
    return {
        "method": plan.method.name,
        "space": plan.space,
        "rank_asked": plain_rank(plan.rank),
        "export": plan.recipe.export,
        "budget": spent and {"parameters": plan.budget_parameters, "spent": spent.parameters, "level": spent.level},
        "dtype": plan.dtype,
        "warnings": list(plan.warnings),
        "added_tokens": plan.added_tokens,
        "weights": plan.recipe.weights,
        "finite": True,  # a NaN or Inf in any input or output raises before this line
        "totals": summarise(reports, members, [s.ref for s in plan.recipe.sources]),
        "modules": [
            {
                "name": m.name,
                "source_indices": list(m.sources),
                "weights": list(m.weights),
                **published(reports[m.name]),
                **details[m.name],
            }
            for m in plan.modules
        ],
    }


def _run_modules(
    plan: Plan,
    journal: Journal,
    finished: Mapping[str, Record],
    work: Callable[[Plan, PlannedModule, Journal], None],
    workers: int,
    on_progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """One pass: `work` on every module that is not `finished`."""
    todo = iter([m for m in plan.modules if m.name not in finished])
    on_progress(len(journal.spectra) + len(journal.records), plan.total * plan.passes)
    with ThreadPoolExecutor(workers, thread_name_prefix="merge") as pool:
        running: set[Future[None]] = set()
        while True:
            if cancelled():
                raise MergeCancelled  # leaving the block waits for the few modules that are running
            # Two a worker: none starves, and no more than those are finished after a cancel.
            while len(running) < 2 * workers and (module := next(todo, None)) is not None:
                running.add(pool.submit(work, plan, module, journal))
            if not running:
                return
            done, running = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            on_progress(len(journal.spectra) + len(journal.records), plan.total * plan.passes)


def _find_spectra(plan: Plan, module: PlannedModule, journal: Journal) -> None:
    """First pass under a budget."""
    head, payload = find_spectra(plan, module, [_read(plan, i, module.name).factors for i in module.sources]).pack()
    journal.append_spectra(module.name, head, payload)


def find_spectra(plan: Plan, module: PlannedModule, sources: list[Factors]) -> ModuleSpectra:
    """The spectra of a module's exact sum and, in core space, of the method's own result."""
    joint = joint_bases(sources)
    target = joint.weighted_sum(module.weights)
    exact = own = Spectrum(*torch.linalg.svd(target, full_matrices=False))
    core = None
    if plan.space == "core":
        rng = torch.Generator().manual_seed(_module_seed(plan.recipe.seed, module.name))
        full = module.target_rank
        result = _call(plan, module, sources, full, rng, joint)
        own = _core(result, target, exact)
        core = own if is_kept(own) and "rank" not in plan.method.needs else None
    # What is smaller is rounding, for instance where sources cancel each other, and not worth a rank.
    floor = ZERO * sum(abs(w) * norm for w, norm in zip(module.weights, joint.norms().tolist(), strict=True))
    audible = torch.where(floor < own.S, own.S, 0.0)
    return ModuleSpectra(exact.S, audible, core)


def spend(plan: Plan, budget: Budget, spectra: Sequence[torch.Tensor]) -> Allocation:
    """The ranks that the budget buys; `spectra`: the singular values of every module's result.

    Raises:
        BadRank: if the result is zero everywhere.
    """
    costs = [m.rank_parameters for m in plan.modules]
    found = water_fill(spectra, costs, plan.budget_parameters or 0, budget.share)
    if not any(found.ranks):
        raise BadRank("the result is zero in every module, so that a budget has nothing to be spent on")
    return found


def _do_module(plan: Plan, module: PlannedModule, journal: Journal, cache: ModuleCache | None) -> None:
    if cache is not None and (known := cache.get(plan, module)) is not None:
        head, payload = known
        journal.append(module.name, {**head, "reused": True}, payload)
        return
    known_spectra = unpack(*journal.read_spectra(module.name)) if module.name in journal.spectra else None
    readings = [_read(plan, i, module.name) for i in module.sources]
    stored, report, details = merge_module(plan, module, readings, known_spectra)
    head, payload = {"report": report, "details": details}, tensor_bytes(stored.A) + tensor_bytes(stored.B)
    journal.append(module.name, head, payload)
    if cache is not None:
        cache.put(plan, module, head, payload)


def merge_module(
    plan: Plan, module: PlannedModule, readings: list[Reading], known: ModuleSpectra | None = None
) -> tuple[Factors, dict[str, Any], dict[str, Any]]:
    """One module merged from what was read of its sources: what is stored, its figures, and its method's details.
    `known`: what a first pass found out about it.

    Raises:
        NonFiniteTensor: if the result holds NaN or Inf in the dtype it is stored in.
    """
    sources = [reading.factors for reading in readings]
    joint = joint_bases(sources)
    target = joint.weighted_sum(module.weights)
    outcome, exact = _merge(plan, module, known, sources, joint, target)
    stored = outcome.factors.to(TORCH_DTYPES[plan.dtype])
    check_finite(stored, module.name, f" of the result in {plan.dtype}")
    report = measure_module(joint, module.weights, target, exact, stored)
    for figures, reading in zip(report["sources"], readings, strict=True):
        if reading.relative_error:
            figures["conversion_error"] = reading.relative_error
    return stored, report, dict(outcome.details)


def _merge(
    plan: Plan,
    module: PlannedModule,
    known: ModuleSpectra | None,
    sources: list[Factors],
    joint: Joint,
    target: torch.Tensor,
) -> tuple[Merged, torch.Tensor]:
    """The method's result at the module's rank, and the singular values of the exact weighted sum."""
    if known and known.core:
        return Merged(joint.lift(known.core, module.target_rank)), known.exact
    exact = Spectrum(*torch.linalg.svd(target, full_matrices=False))
    rank = _rank_from_energy(exact.S, module.rank) if isinstance(module.rank, float) else module.target_rank
    if rank == 0:
        width, height = sources[0].in_features, sources[0].out_features  # the module's, unless sources are condensed
        return Merged(Factors(torch.zeros(0, width), torch.zeros(height, 0))), exact.S
    rng = torch.Generator().manual_seed(_module_seed(plan.recipe.seed, module.name))
    outcome = _call(plan, module, sources, rank, rng, joint)
    if plan.space == "dense":
        outcome = Merged(truncate_dense(outcome, rank, rng))
    elif plan.space == "core":
        outcome = Merged(joint.lift(_core(outcome, target, exact), rank))
    return outcome, exact.S


def _call(
    plan: Plan,
    module: PlannedModule,
    sources: list[Factors],
    rank: int,
    rng: torch.Generator,
    joint: Joint,
) -> Any:
    """The method, handed what it asks for.

    Raises NonFiniteTensor here already if its result is too large for its dtype: no SVD of it could be had.
    """
    stack = joint.cores if plan.takes_cores else None
    if plan.space == "dense":
        stack = torch.stack([f.B @ f.A for f in sources]).float()
    scales = [plan.adapters[i].modules[module.name].scale for i in module.sources]
    inputs = ModuleInputs(sources, list(module.weights), rank, rng, stack, joint, module.depth, scales)
    found = plan.method.run(plan.space, inputs, _options(plan))
    if isinstance(found, torch.Tensor) and (bad := int((~torch.isfinite(found)).sum())):
        raise NonFiniteTensor(f"{module.name} of the result", bad, found.numel())
    return found


def _core(result: torch.Tensor, target: torch.Tensor, exact: Spectrum) -> Spectrum:
    """The SVD of a core; where it is the plain sum's, one SVD serves both."""
    return exact if torch.equal(result, target) else Spectrum(*torch.linalg.svd(result, full_matrices=False))


def _read(plan: Plan, source: int, module: str) -> Reading:
    try:
        return plan.adapters[source].reading(module)
    except NonFiniteTensor as error:
        raise NonFiniteTensor(f"{error.key} of '{plan.recipe.sources[source].ref}'", error.count, error.size) from None


def _options(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan.params, name) for name in type(plan.params).model_fields}


def _rank_from_energy(spectrum: torch.Tensor, share: float) -> int:
    """The smallest rank that keeps `share` of the exact sum's energy; at least 1, so that the module stays."""
    energy = spectrum.square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1 if float(energy[-1]) > 0 else 1


def _module_seed(seed: int, module: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{module}".encode()).digest()[:8], "little") >> 1


def _plan_id(plan: Plan) -> str:
    """Names everything that decides a module's bytes, as far as this room knows it."""
    document = {
        "recipe": plan.recipe.model_dump(mode="json"),
        "params": plan.params.model_dump(mode="json"),
        "space": plan.space,
        "dtype": plan.dtype,
        "modules": [(m.name, m.sources, m.ranks, m.target_rank, m.weights, m.depth) for m in plan.modules],
        "scales": [[adapter.modules[name].scale for name in adapter.modules] for adapter in plan.adapters],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
