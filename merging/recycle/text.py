"""A whole distillation of text adapters: LoRAs with label words or heads in, one meta-adapter out, no data.

Our extension of LoRA Recycle (arXiv 2412.02220) to texts; the paper knows images only. What is the same is shared:
meta-training, tasks, interpolation, checkpoints. What differs:

    inversion    in the space of token embeddings, or on real tokens (`text_inversion.py`)
    teaching     the teacher hears a text in its own prompt, the student hears it bare
    meta         one LoRA that imitates all sources as a prototype classifier of bare texts

As with images, everything that is finished lies in the job's folder, and a run that was killed or cancelled goes on to
the same bytes.
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
from merging.recycle.inversion import Inversion
from merging.recycle.inverting import Curve, OnStep, batches_of, kept_inversion, wanted_labels
from merging.recycle.lora import check_targets, new_lora, write_lora
from merging.recycle.meta_training import History
from merging.recycle.params import TextRecycleParams
from merging.recycle.phases import Distilled, Listener, Progress, figures, invert_source, train_phase
from merging.recycle.randomness import generator
from merging.recycle.surrogates import Pool, Surrogates
from merging.recycle.text_base import TextBase
from merging.recycle.text_inversion import Vocabulary, heard_tokens, invert_texts
from merging.recycle.text_network import TextNetwork
from merging.recycle.text_predict import BareTexts
from merging.recycle.text_source import TextSource

VERSION = 1  # of what a distillation of texts computes; part of every file's identity


@dataclass(frozen=True, slots=True, eq=False)
class TextDistillation:
    """One run in one folder."""

    base: TextBase
    sources: Sequence[TextSource]
    params: TextRecycleParams
    folder: Path
    on_progress: Callable[[Progress], None] = lambda progress: None
    cancelled: Callable[[], bool] = lambda: False
    network: TextNetwork = field(init=False)
    vocabulary: Vocabulary = field(init=False)

    def __post_init__(self) -> None:
        check_texts(self.base, self.sources, self.params)
        network = self.base.network.to(getattr(torch, self.params.precision))
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "vocabulary", Vocabulary(self.base, network))

    def run(self) -> Distilled:
        """All phases. Raises DistillationCancelled, OSError."""
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        held, curves = [], []
        for index in range(len(self.sources)):
            inputs, own = self._invert(index)
            held.append(self._teach(index, inputs))
            curves.append(own)
        lora, history = self._train(held)
        config = write_lora(lora, self.base, self.params.targets, self.folder, task_type="CAUSAL_LM")
        report = {
            "method": "recycle",
            "paper": "our extension to texts of LoRA Recycle, arXiv 2412.02220",
            "params": self.params.model_dump(mode="json"),
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "sources": [
                figures(s, h, c) | {"texts": len(h.inputs), "tokens": h.patches.shape[1]}
                for s, h, c in zip(self.sources, held, curves, strict=True)
            ],
            "meta": history,
            "parameters": sum(factors.A.numel() + factors.B.numel() for factors in lora.values()),
            "seconds": time.perf_counter() - started,
        }
        return Distilled(config, self.folder / "adapter_model.safetensors", report)

    def surrogates(self) -> list[list[str]]:
        """Each source's texts, decoded to the nearest real tokens, labelled as `wanted_labels` says; what is not made
        yet is made. They show what the source was trained on: for those whom its owner lets see them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = []
        for index in range(len(self.sources)):
            nearest = self.vocabulary.nearest(self._invert(index)[0])
            found.append(self.base.decode(self.vocabulary.ids[nearest]))
        return found

    @property
    def _known(self) -> str:
        """A digest of what inversion rests on, beside the source."""
        return digest("text", VERSION, self.base.fingerprint, self.params.precision, self.params.length)

    @property
    def _listener(self) -> Listener:
        return Listener(self.on_progress, self.cancelled)

    def _identity(self, source: TextSource) -> str:
        return digest(self._known, source_digest(source), source.before, source.after)

    def _invert(self, index: int) -> tuple[Tensor, list[Curve]]:
        """A source's normalised embeddings [N, T, D] and the loss curves of its batches, as far as not there yet."""
        source, params = self.sources[index], self.params
        counts = [batches_of(one, params) for one in self.sources]
        own = params.inversion.model_dump_json(exclude={"masked", "seed"})

        def invert(number: int, on_step: OnStep) -> tuple[Tensor, Curve]:
            labels = torch.split(wanted_labels(source, params), params.inversion.batch)[number]
            wanted = digest(self._identity(source), own, params.inversion_seed, number, labels)

            def run(state: Inversion, keep: OnStep) -> None:
                invert_texts(state, self.base, self.network, source, self.vocabulary, params.inversion, keep)

            place = self.folder / f"inversion-{index:03}-{number:02}.safetensors"
            shape, use = (params.length, self.base.width), (params.inversion_seed, source.ref, number)
            return kept_inversion(place, wanted, labels, shape, params.inversion, use, run, on_step)

        return invert_source(index, counts, params.inversion.steps, self._listener, invert)

    def _teach(self, index: int, inputs: Tensor) -> Surrogates:
        """Tokens and the teacher's opinion, as far as they are not there yet."""
        source, params = self.sources[index], self.params.inversion
        if params.tokens != "free":
            inputs = self.vocabulary.rounded(inputs)
        embeddings, labels = self.base.embeddings(inputs), wanted_labels(source, self.params)
        place = self.folder / f"teaching-{index:03}.safetensors"
        wanted = digest(self._identity(source), params.masked, embeddings)
        if (kept := load_checkpoint(place, wanted)) is not None:
            return Surrogates(embeddings, labels, kept[0]["patches"], kept[0]["teacher"], source.classes)
        self._listener.announce(Progress("teaching", index, len(self.sources), {}))
        teacher, patches = heard_tokens(self.network, source, embeddings, params.masked)
        save_checkpoint(place, {"patches": patches, "teacher": teacher}, {"identity": wanted})
        return Surrogates(embeddings, labels, patches, teacher, source.classes)

    def _train(self, held: Sequence[Surrogates]) -> tuple[dict[str, Factors], History]:
        """The meta-adapter and its history."""
        params = self.params
        lora = new_lora(self.base, params.targets, params.rank, generator(params.seed, "lora"))
        student = BareTexts(self.network, self.base.start)
        return lora, train_phase(self.folder, self._known, lora, student, Pool(held), params, self._listener)


def distil_texts(
    base: TextBase,
    sources: Sequence[TextSource],
    params: TextRecycleParams,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Distilled:
    """Distil text `sources` into one meta-adapter, in the scratch folder `folder` (made if absent).

    Called again on the same folder after a kill or a cancel, it goes on. `on_progress` and `cancelled` are called after
    every step.

    Raises:
        BadDistillation: if parameters, base and sources do not go together.
        DistillationCancelled: once `cancelled()` is true.
        OSError: as the file system says.
    """
    return TextDistillation(base, sources, params, folder, on_progress, cancelled).run()


def check_texts(base: TextBase, sources: Sequence[TextSource], params: TextRecycleParams) -> None:
    """Everything that would stop a distillation in its middle. Raises BadDistillation."""
    if not sources:
        raise BadDistillation("a distillation needs at least one source")
    check_targets(base, params.targets)
    classes = sum(source.ways for source in sources)
    if params.meta.interpolation > 0 and params.meta.ways > classes:
        raise BadDistillation(
            f"an interpolated task of {params.meta.ways} classes needs as many; the sources have {classes}"
        )
