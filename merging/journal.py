"""Finished modules of a running merge, on disk: what makes it survive a kill.

An append-only file of records: [8 bytes size of the head][head: JSON][the factors' bytes][sha256 of all that]. The
first record names the plan, so that another plan's modules are never taken over. Under a rank budget, a record of
each module's spectrum comes before the modules (`merging/spectra.py`). A record that was cut short by a
kill fails its checksum; it and whatever follows is cut off, and only its module is done again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DIGEST_BYTES = 32
MAX_HEAD_BYTES = 64 * 2**20


class Record(NamedTuple):
    """One finished module: what the head says, and where its factors' bytes lie in the file."""

    head: dict[str, Any]
    offset: int
    size: int


class Journal:
    """The journal at `path` of the plan called `plan_id`. Safe to append to from several threads of one process."""

    def __init__(self, path: Path, plan_id: str) -> None:
        self._lock = threading.Lock()
        self.records: dict[str, Record] = {}
        self.spectra: dict[str, Record] = {}
        self._file = path.open("r+b" if path.exists() else "w+b")
        end = self._recover(plan_id)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._write({"plan": plan_id}, b"")

    def append(self, module: str, head: dict[str, Any], payload: bytes) -> None:
        """Add a finished module; after this returns, a killed process does not lose it."""
        with self._lock:
            self.records[module] = self._write({"module": module, **head}, payload)

    def append_spectra(self, module: str, head: dict[str, Any], payload: bytes) -> None:
        """Add what the first pass found out about a module."""
        with self._lock:
            self.spectra[module] = self._write({"spectra": module, **head}, payload)

    def read(self, module: str) -> bytes:
        """The factors' bytes of a finished module."""
        return self._payload(self.records[module])

    def read_spectra(self, module: str) -> tuple[dict[str, Any], bytes]:
        """Head and payload of a module's first pass."""
        record = self.spectra[module]
        return record.head, self._payload(record)

    def _payload(self, record: Record) -> bytes:
        return os.pread(self._file.fileno(), record.size, record.offset)

    def close(self) -> None:
        self._file.close()

    def _write(self, head: dict[str, Any], payload: bytes) -> Record:
        raw = json.dumps({**head, "payload_bytes": len(payload)}).encode()
        record = len(raw).to_bytes(8, "little") + raw + payload
        start = self._file.tell()
        self._file.write(record + hashlib.sha256(record).digest())
        self._file.flush()
        return Record(head, start + 8 + len(raw), len(payload))

    def _recover(self, plan_id: str) -> int:
        """Take over the valid records of the same plan; the offset where they end (0: start afresh)."""
        end = 0
        for record, after in self._scan():
            if end == 0 and record.head.get("plan") != plan_id:
                return 0
            if "module" in record.head:
                self.records[record.head["module"]] = record
            elif "spectra" in record.head:
                self.spectra[record.head["spectra"]] = record
            end = after
        return end

    def _scan(self) -> Iterator[tuple[Record, int]]:
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        while True:
            start = self._file.tell()
            length = self._file.read(8)
            head_bytes = int.from_bytes(length, "little")
            if len(length) < 8 or head_bytes > min(MAX_HEAD_BYTES, size - start):
                return
            raw = self._file.read(head_bytes)
            try:
                head = json.loads(raw)
                payload_bytes = int(head["payload_bytes"])
            except (ValueError, KeyError, TypeError):
                return
            if not 0 <= payload_bytes <= size - start:
                return
            payload = self._file.read(payload_bytes)
            found = self._file.read(DIGEST_BYTES)
            if found != hashlib.sha256(length + raw + payload).digest():
                return
            yield Record(head, start + 8 + head_bytes, payload_bytes), self._file.tell()
