"""What clients asked for and what they were told: the truth that a store is held to after it was shaken.

Every change is noted before it is asked for and once more when the answer is here. What was asked for without an
answer may have happened or not; what was acknowledged must have.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Upload:
    """An acknowledged version and what its files hash to."""

    ref: str
    sha256: dict[str, str]
    deletion: str = "none"  # none, asked, done


@dataclass
class Ledger:
    """Safe from many threads."""

    uploads: dict[str, Upload] = field(default_factory=dict)
    merges: dict[str, list[str]] = field(default_factory=dict)
    """Job id -> the sources it was given."""
    aliases: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)
    """`namespace/name:alias` -> versions it was moved to, in order, and whether that was acknowledged."""
    answers: Counter[str] = field(default_factory=Counter)
    """How often each kind of request was answered by which status, or what came instead of an answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, kind: str, status: int | str) -> None:
        """Count an answer."""
        with self._lock:
            self.answers[f"{kind} {status}"] += 1

    def uploaded(self, ref: str, sha256: dict[str, str]) -> None:
        """A version was acknowledged."""
        with self._lock:
            self.uploads.setdefault(ref, Upload(ref, sha256))

    def deleting(self, ref: str, *, done: bool) -> None:
        """A deletion is about to be asked for, or was acknowledged."""
        with self._lock:
            self.uploads[ref].deletion = "done" if done else "asked"

    def not_deleted(self, ref: str) -> None:
        """The deletion was refused, so the version must stay."""
        with self._lock:
            self.uploads[ref].deletion = "none"

    def merging(self, job: str, sources: list[str]) -> None:
        """A merge's job was acknowledged."""
        with self._lock:
            self.merges[job] = sources

    def moving(self, alias: str, version: int) -> int:
        """An alias is about to be moved; returns the place of this note."""
        with self._lock:
            moves = self.aliases.setdefault(alias, [])
            moves.append((version, False))
            return len(moves) - 1

    def moved(self, alias: str, place: int) -> None:
        """That move was acknowledged."""
        with self._lock:
            self.aliases[alias][place] = (self.aliases[alias][place][0], True)

    def promised(self, ref: str) -> dict[str, str]:
        """What the files of an acknowledged version hash to."""
        with self._lock:
            return self.uploads[ref].sha256

    def living(self) -> list[str]:
        """Versions that nobody asked to delete."""
        with self._lock:
            return [upload.ref for upload in self.uploads.values() if upload.deletion == "none"]
