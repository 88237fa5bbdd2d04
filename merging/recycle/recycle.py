"""A whole distillation: adapters with heads in, one meta-adapter out, no data (LoRA Recycle, arXiv 2412.02220).

    statistics   what features of natural-looking images are like, from generated ones or as given
    inversion    surrogate images of every source's classes, batch by batch
    teaching     which of their patches are seen, and what each source says about its images
    meta         one LoRA that imitates all sources as a prototype classifier

Everything that is finished lies in the job's folder, in files that name what they were made from: a run that was killed
or cancelled goes on at its last checkpoint, and ends in the same bytes. A file that was made from anything else
(another parameter, another source) is made again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deltas.factors import Factors
from merging.recycle.checkpoint import load_checkpoint, save_checkpoint
from merging.recycle.errors import BadDistillation
from merging.recycle.identity import digest, source_digest
from merging.recycle.inversion import resolved, surviving_patches
from merging.recycle.inverting import Curve, OnStep, batches_of, invert_batch, wanted_labels
from merging.recycle.lora import check_targets, new_lora, write_lora
from merging.recycle.meta_training import History
from merging.recycle.params import RecycleParams
from merging.recycle.phases import Distilled, Listener, Progress, figures, invert_source, train_phase
from merging.recycle.randomness import generator
from merging.recycle.source import Source
from merging.recycle.statistics import Moments, expected_moments
from merging.recycle.surrogates import Pool, Surrogates, ask_teacher
from merging.recycle.vision_base import VisionBase, VisionInfo
from merging.recycle.vit import VisionTransformer

__all__ = ["Distillation", "Distilled", "Progress", "check", "distil"]
VERSION = 2  # of what a distillation computes; part of every file's identity


@dataclass(frozen=True, slots=True, eq=False)
class Distillation:
    """One run in one folder."""

    base: VisionBase
    sources: Sequence[Source]
    params: RecycleParams
    folder: Path
    moments: Moments | None = None
    on_progress: Callable[[Progress], None] = lambda progress: None
    cancelled: Callable[[], bool] = lambda: False
    network: VisionTransformer = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", self.base.network.to(getattr(torch, self.params.precision)))
        check(self.base.info, [source.ways for source in self.sources], self.params)

    def run(self) -> Distilled:
        """All phases. Raises DistillationCancelled, OSError."""
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        expected, known = self._statistics()
        held, curves = [], []
        for index in range(len(self.sources)):
            images, own = self._invert(index, expected, known)
            held.append(self._teach(index, images, known))
            curves.append(own)
        lora, history = self._train(held, known)
        config = write_lora(lora, self.base, self.params.targets, self.folder)
        report = {
            "method": "recycle",
            "paper": "LoRA Recycle, arXiv 2412.02220",
            "params": self.params.model_dump(mode="json"),
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "statistics": "given" if self.moments is not None else self.params.generated,
            "sources": [
                figures(s, h, c) | {"images": len(h.inputs), "patches": h.patches.shape[1]}
                for s, h, c in zip(self.sources, held, curves, strict=True)
            ],
            "meta": history,
            "parameters": sum(factors.A.numel() + factors.B.numel() for factors in lora.values()),
            "seconds": time.perf_counter() - started,
        }
        return Distilled(config, self.folder / "adapter_model.safetensors", report)

    def surrogates(self) -> list[Tensor]:
        """Each source's images as pixels from 0 to 1 [N, 3, px, px], labelled as `wanted_labels` says; what is not made
        yet is made. They show what the source was trained on: for those whom its owner lets see them."""
        expected, known = self._statistics()
        found = [self._invert(index, expected, known)[0] for index in range(len(self.sources))]
        return [self.base.pixels(images).clamp(0, 1) for images in found]

    def _statistics(self) -> tuple[Moments, str]:
        """The expected moments, and a digest of them and all else that inversion rests on."""
        params, own = self.params, self.moments
        known = digest(VERSION, self.base.fingerprint, params.precision, params.image_px)
        if own is None:
            wanted = digest(known, params.generated, params.calibration, params.inversion_seed)
            place = self.folder / "statistics.safetensors"
            if (kept := load_checkpoint(place, wanted)) is not None:
                own = [(kept[0][f"{block}.m"], kept[0][f"{block}.v"]) for block in range(self.network.sizes.blocks)]
            else:
                self._listener.announce(Progress("statistics", 0, 1, {}))
                rng = generator(params.inversion_seed, "statistics")
                kind, count = params.generated, params.calibration
                own = expected_moments(self.base, self.network, params.image_px, count, kind, rng)
                flat = {f"{block}.m": mean for block, (mean, _) in enumerate(own)}
                flat |= {f"{block}.v": variance for block, (_, variance) in enumerate(own)}
                save_checkpoint(place, flat, {"identity": wanted})
        return own, digest(known, *(tensor for pair in own for tensor in pair))

    def _invert(self, index: int, expected: Moments, known: str) -> tuple[Tensor, list[Curve]]:
        """A source's images and the loss curves of its batches, as far as they are not there yet."""
        source, params = self.sources[index], self.params
        counts = [batches_of(one, params) for one in self.sources]

        def invert(number: int, on_step: OnStep) -> tuple[Tensor, Curve]:
            place = self.folder / f"inversion-{index:03}-{number:02}.safetensors"
            return invert_batch(place, self.base, self.network, source, number, expected, known, params, on_step)

        return invert_source(index, counts, params.inversion.steps, self._listener, invert)

    def _teach(self, index: int, images: Tensor, known: str) -> Surrogates:
        """Patches and the teacher's opinion, as far as they are not there yet."""
        source, masking = self.sources[index], self.params.inversion.masking
        labels = wanted_labels(source, self.params)
        place = self.folder / f"teaching-{index:03}.safetensors"
        wanted = digest(known, source_digest(source), sorted(masking.items()), images)
        if (kept := load_checkpoint(place, wanted)) is not None:
            return Surrogates(images, labels, kept[0]["patches"], kept[0]["teacher"], source.classes)
        self._listener.announce(Progress("teaching", index, len(self.sources), {}))
        patches = surviving_patches(self.network, source, images, masking)
        teacher = ask_teacher(self.network, source, images, patches)
        save_checkpoint(place, {"patches": patches, "teacher": teacher}, {"identity": wanted})
        return Surrogates(images, labels, patches, teacher, source.classes)

    def _train(self, held: Sequence[Surrogates], known: str) -> tuple[dict[str, Factors], History]:
        """The meta-adapter and its history."""
        params = self.params
        lora = new_lora(self.base, params.targets, params.rank, generator(params.seed, "lora"))
        pool = Pool(held, params.image_px // self.network.sizes.patch_px)
        return lora, train_phase(self.folder, known, lora, self.network, pool, params, self._listener)

    @property
    def _listener(self) -> Listener:
        return Listener(self.on_progress, self.cancelled)


def distil(
    base: VisionBase,
    sources: Sequence[Source],
    params: RecycleParams,
    folder: Path,
    *,
    moments: Moments | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Distilled:
    """Distil `sources` into one meta-adapter, in the scratch folder `folder` (made if absent).

    Called again on the same folder after a kill or a cancel, it goes on. `moments`: the feature statistics of images
    that may be looked at, instead of generated ones. `on_progress` and `cancelled` are called after every step.

    Raises:
        BadDistillation: if parameters, base and sources do not go together.
        DistillationCancelled: once `cancelled()` is true.
        OSError: as the file system says.
    """
    return Distillation(base, sources, params, folder, moments, on_progress, cancelled).run()


def check(base: VisionInfo, ways: Sequence[int], params: RecycleParams) -> None:
    """Everything that would stop a distillation in its middle; `ways`: how many classes each source has.

    Raises:
        BadDistillation: with what does not go together.
    """
    patch, blocks = base.sizes.patch_px, base.sizes.blocks
    if not ways:
        raise BadDistillation("a distillation needs at least one source")
    if params.image_px % patch:
        raise BadDistillation(
            f"image_px must be a multiple of the base's patch ({patch} pixels), found {params.image_px}"
        )
    for ratios in (params.inversion.prune, params.inversion.masking):
        try:
            resolved(ratios, blocks)
        except IndexError:
            asked = ", ".join(map(str, ratios))
            raise BadDistillation(
                f"tokens are pruned in blocks 0 to {blocks - 1} (or −1 to −{blocks}), asked: {asked}"
            ) from None
    check_targets(base, params.targets)
    classes = sum(ways)
    if params.meta.interpolation > 0 and params.meta.ways > classes:
        raise BadDistillation(
            f"an interpolated task of {params.meta.ways} classes needs as many; the sources have {classes}"
        )
