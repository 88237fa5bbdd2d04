"""Few-shot predictions: one thread that holds the vision base, and a bounded number of questions before it.

Whoever waits when the thread is free goes through the network together: the images of all requests with the same
adapters and size in one pass. Each set of adapters is folded into the weights once and kept (`vision_sets`); everything
is dropped when nobody has asked for a while (`vision_idle_s`).

On a processor that multiplies bfloat16 in hardware the network runs in it (`prediction_precision`), distances and
probabilities in float32 always.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from app.problems import Refusal
from app.settings import Settings
from app.shelves import Shelves
from merging.recycle.folding import folded
from merging.recycle.lora import read_lora, summed
from merging.recycle.vision_base import VisionBase, load_vision_base
from merging.recycle.vit import VisionTransformer

log = logging.getLogger(__name__)

Members = tuple[tuple[str, float], ...]
"""(version digest, weight) of adapters that are applied together; none: the bare base."""
_STOP_TIMEOUT_S = 5.0
_PASS = 64  # images that go through the network at once: more only takes memory


def chosen_precision(settings: Settings) -> torch.dtype:
    """What predictions compute in."""
    if settings.prediction_precision != "auto":
        return torch.bfloat16 if settings.prediction_precision == "bfloat16" else torch.float32
    quick = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Images uint8 [N, 3, px, px] to embed, once with each of `sets`, on one base (its folder)."""

    folder: Path
    sets: tuple[Members, ...]
    images: Tensor
    answer: Future[list[Tensor]] = field(default_factory=Future)


class Predictor:
    """Embeds images with sets of adapters; safe from many threads."""

    def __init__(self, shelves: Shelves) -> None:
        settings = shelves.settings
        self.precision = chosen_precision(settings)
        self._shelves, self._settings = shelves, settings
        self._load_adapter = shelves.adapter_loader()
        self._waiting: queue.Queue[Asked | None] = queue.Queue()
        self._inside = 0
        self._bases: dict[Path, VisionBase] = {}
        self._networks: OrderedDict[tuple[Path, Members], VisionTransformer] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.decoding = asyncio.Semaphore(settings.threads)
        """Who decodes images; large ones take a hundred megabytes while they do."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """The bases that are in memory now."""
        return tuple(base.name for base in list(self._bases.values()))

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one question, held from before its body is read until it is answered. Raises Refusal when none is
        free."""
        with self._lock:
            most = self._settings.max_waiting_predictions
            if self._inside >= most:
                detail = f"{most} predictions are waiting already; try again in a moment."
                raise Refusal(429, "queue-full", detail, limit=most)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def submit(self, folder: Path, sets: Sequence[Members], images: Tensor) -> Future[list[Tensor]]:
        """Embeddings [N, D] in float32 for each set. Raises Refusal if the service stops."""
        asked = Asked(folder, tuple(sets), images)
        with self._lock:
            if self._closed:
                raise _stops()
            if self._thread is None:  # the first one: nothing runs, and nothing is loaded, before
                self._thread = threading.Thread(target=self._run, name="spolia-predictions", daemon=True)
                self._thread.start()
            self._waiting.put(asked)
        return asked.answer

    def close(self) -> None:
        """Stop after the pass that runs; what waits fails."""
        with self._lock:
            self._closed = True
            thread = self._thread
        for asked in self._drained():
            asked.answer.set_exception(_stops())
        self._waiting.put(None)
        if thread is not None:
            thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        torch.set_num_threads(self._settings.threads)
        while True:
            try:
                first = self._waiting.get(timeout=self._settings.vision_idle_s if self._bases else None)
            except queue.Empty:
                log.info("nobody asked for a prediction for a while: the vision base leaves memory")
                self._bases.clear()
                self._networks.clear()
                continue
            if first is None:
                return
            batch = [first]
            while sum(len(asked.images) for asked in batch) < self._settings.prediction_batch_images:
                try:
                    another = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if another is None:  # after all who came before it have been answered
                    self._answer(batch)
                    return
                batch.append(another)
            self._answer(batch)

    def _answer(self, batch: Sequence[Asked]) -> None:
        """Embed all images of the batch: those of one base, set and size together."""
        live = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
        found: dict[tuple[int, Members], Tensor] = {}
        groups: dict[tuple[Path, Members, torch.Size], list[Asked]] = {}
        for asked in live:
            for members in dict.fromkeys(asked.sets):
                groups.setdefault((asked.folder, members, asked.images.shape[1:]), []).append(asked)
        failed: dict[int, Exception] = {}
        for (folder, members, _), group in groups.items():
            try:
                embedded = self._embed(folder, members, torch.cat([asked.images for asked in group]))
            except Exception as error:  # whatever it is, those who wait must hear of it
                failed |= {id(asked): error for asked in group}
                continue
            for asked, own in zip(group, torch.split(embedded, [len(asked.images) for asked in group]), strict=True):
                found[id(asked), members] = own
        for asked in live:
            if id(asked) in failed:
                asked.answer.set_exception(failed[id(asked)])
            else:
                asked.answer.set_result([found[id(asked), members] for members in asked.sets])

    def _embed(self, folder: Path, members: Members, images: Tensor) -> Tensor:
        base = self._base(folder)
        network = self._network(folder, base, members)
        with torch.inference_mode():
            parts = [network(base.normalised(part / 255)).embedding for part in torch.split(images, _PASS)]
        return torch.cat(parts).float()

    def _base(self, folder: Path) -> VisionBase:
        if folder not in self._bases:
            began = time.monotonic()
            self._bases[folder] = load_vision_base(folder)
            log.info("vision base %s loaded in %.2f s", self._bases[folder].name, time.monotonic() - began)
        return self._bases[folder]

    def _network(self, folder: Path, base: VisionBase, members: Members) -> VisionTransformer:
        """The base with these adapters folded in, kept for the next request."""
        key = (folder, members)
        if key not in self._networks:
            loras = [(read_lora(f"sha256:{digest}", self._load_adapter(digest), base), w) for digest, w in members]
            with torch.inference_mode():
                if (folder, ()) not in self._networks:
                    self._networks[folder, ()] = base.network.to(self.precision)
                self._networks[key] = folded(self._networks[folder, ()], base.network, summed(loras))
            while len(self._networks) > self._settings.vision_sets:
                self._networks.popitem(last=False)
        self._networks.move_to_end(key)
        return self._networks[key]

    def _drained(self) -> list[Asked]:
        found = []
        while True:
            try:
                if (asked := self._waiting.get_nowait()) is not None:
                    found.append(asked)
            except queue.Empty:
                return found


def _stops() -> Refusal:
    return Refusal(503, "service-stops", "The service is stopping; ask again in a moment.")
