"""Where a distillation is, as one count over all of its phases, with the losses of the last step, and how long each
phase took, interruptions left out."""

import json
import time
from pathlib import Path
from typing import Any

from merging.recycle.recycle import Progress

FILE = "seconds.json"
_WRITE_EVERY_S = 5.0


class PhaseReport:
    """Counts steps of the phases statistics, inversion, teaching and meta as one; keeps their seconds in `folder`, so
    that a run that goes on adds to them."""

    def __init__(self, inversion: int, meta: int, folder: Path) -> None:
        self._before = {"statistics": 0, "inversion": 1, "meta": 1 + inversion}
        self._total = 1 + inversion + meta
        self._done = 0
        self._file = folder / FILE
        self._last = self._written = time.monotonic()
        self._phase = ""
        self.seconds = self._kept()

    def seen(self, progress: Progress) -> tuple[int, int, dict[str, Any]]:
        """(done, total, what more is said) of a step. Teaching, between two sources' inversions, moves nothing."""
        now = time.monotonic()
        self.seconds[progress.phase] = self.seconds.get(progress.phase, 0.0) + now - self._last
        self._last = now
        if now - self._written > _WRITE_EVERY_S or progress.phase != self._phase:
            self._written, self._phase = now, progress.phase
            self._keep()
        if progress.phase in self._before:
            self._done = self._before[progress.phase] + progress.done
        detail: dict[str, Any] = {"phase": progress.phase, "phase_done": progress.done, "phase_total": progress.total}
        return self._done, self._total, detail | ({"losses": dict(progress.losses)} if progress.losses else {})

    def _kept(self) -> dict[str, float]:
        """The seconds of the attempts before; none, if a power cut left a file without its text."""
        try:
            kept: dict[str, float] = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return kept

    def _keep(self) -> None:
        """At one stroke, as a kill may come at any moment."""
        staging = self._file.with_name(f".{FILE}.part")
        staging.write_text(json.dumps(self.seconds))
        staging.replace(self._file)
