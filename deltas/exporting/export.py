"""An adapter written in the form that a runtime loads.

    export = export_for(adapter, "vllm", folder, base=architecture)
    export.settings                                             # {"enable_lora": True, "max_lora_rank": 16}

The result is canonical LoRA in float32 (deltas/exporting/canonical.py): exact, unless `max_rank` asks for less than the
adapter has, and then `energy_lost` says what that costs. The same adapter gives the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltas.adapter import Adapter
from deltas.architecture import Architecture
from deltas.errors import NotExportable
from deltas.exporting.canonical import own_modules, share_lost, uniform_modules
from deltas.exporting.gguf_file import FILE, write_gguf
from deltas.exporting.peft_folder import CONFIG, WEIGHTS, write_peft_folder
from deltas.runtime import Facts, resolve_runtime


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `energy_lost`: the share of ‖ΔW‖² that `max_rank` cost, 0 … 1, and of which module how much."""

    target: str
    version: str  # of the target, whose rules it satisfies
    folder: Path
    files: tuple[str, ...]
    rank: int
    changes: tuple[str, ...]
    settings: Mapping[str, Any]
    energy_lost: float
    lost_by_module: Mapping[str, float]

    def describe(self) -> dict[str, Any]:
        """The export as JSON, without where it lies."""
        return {
            "target": self.target,
            "version": self.version,
            "files": list(self.files),
            "rank": self.rank,
            "changes": list(self.changes),
            "settings": dict(self.settings),
            "energy_lost": self.energy_lost,
        }


def export_for(
    adapter: Adapter,
    target: str,
    folder: Path,
    *,
    base: Architecture | None = None,
    max_rank: int | None = None,
) -> Export:
    """Write `adapter` into `folder` (made if absent) for the runtime `target`; see deltas/runtimes/ for their names.

    `base`: what is known of its base model; llama.cpp and TGI need it. `max_rank`: modules of a larger rank are cut to
    it, with the energy lost stated.

    Raises:
        UnknownRuntime: naming the known ones.
        NotExportable: the runtime cannot be given this adapter; all reasons are named.
        NonFiniteTensor: naming the module.
        MissingBaseTensor: a conversion needs a weight that the base model lacks.
    """
    runtime = resolve_runtime(target)
    facts = Facts(adapter, base, max_rank)
    blocking = runtime.blocking(runtime.findings(facts))
    if blocking:
        raise NotExportable(runtime.title, tuple(finding.sentence for finding in blocking))
    folder.mkdir(parents=True, exist_ok=True)
    if runtime.form == "gguf":
        assert base is not None  # otherwise a finding
        energies = write_gguf(adapter, own_modules(facts), base, folder)
        files: tuple[str, ...] = (FILE,)
    else:
        energies = write_peft_folder(adapter, uniform_modules(facts, runtime.fill(facts)), base, folder)
        files = (CONFIG, WEIGHTS)
    lost = share_lost(energies)
    cut = {name: energy.lost / energy.total for name, energy in energies.items() if energy.lost > 0}
    changes = runtime.verdict(facts).changes
    if max_rank is not None and any(info.rank > max_rank for info in facts.modules):
        changes = (*changes, f"ranks above {max_rank} are cut, which loses {100 * lost:.3g} % of the energy ‖ΔW‖²")
    return Export(
        runtime.name,
        runtime.version,
        folder,
        files,
        facts.rank,
        changes,
        runtime.settings(facts, facts.rank),
        lost,
        cut,
    )
