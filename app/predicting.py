"""From a few-shot question to class probabilities: which adapters, which pixels, and what their embeddings say."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from anyio import to_thread
from torch import Tensor

from app.facts import modality_of
from app.generation import LARGEST_WEIGHT, ChosenSet, Member
from app.house import House
from app.identity.caller import current
from app.pictures import Resizing, read_picture
from app.predictor import Members
from app.problems import Refusal
from app.revoked import in_force
from app.schemas_recycle import PredictionForm
from app.vision import image_base, info_of
from merging.recycle.errors import BadEpisode
from merging.recycle.prototypes import class_log_probabilities, prototypes
from serving.ensemble import predict as mean_prediction
from serving.ensemble import shares
from serving.generation import BARE_BASE
from store.errors import BadReference, UnknownReference
from store.records import Base, Version

DEFAULT_PATCHES = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A prediction that was found possible: base, adapters, and the size of its images."""

    base: Base
    folder: Path
    chosen: ChosenSet
    px: int
    form: PredictionForm

    @property
    def sets(self) -> tuple[Members, ...]:
        """What goes through the network: one set if updates are summed, one for each member of an ensemble."""
        members = self.chosen.members
        if self.chosen.combine == "sum":
            return (tuple((one.digest, one.weight) for one in members),)
        return tuple(() if one.digest == BARE_BASE else ((one.digest, 1.0),) for one in members)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images of a question as they were sent."""

    support: Sequence[bytes]
    labels: Sequence[str]
    queries: Sequence[bytes]


async def answer(house: House, form: PredictionForm, pictures: Pictures) -> dict[str, Any]:
    """The answer's JSON; blocking work is done in threads. Raises Refusal and what the rooms below raise."""
    async with house.predictor.decoding:
        question, images = await to_thread.run_sync(_prepared, house, form, pictures)
    embedded = await asyncio.wrap_future(house.predictor.submit(question.folder, question.sets, images))
    return await to_thread.run_sync(_judged, house, question, pictures.labels, embedded)


def _prepared(house: House, form: PredictionForm, pictures: Pictures) -> tuple[Question, Tensor]:
    settings = house.settings
    count = len(pictures.support) + len(pictures.queries)
    if count > settings.max_prediction_images:
        detail = f"There are {count} images; at most {settings.max_prediction_images} are taken at once."
        raise Refusal(422, "too-many-images", detail, limit=settings.max_prediction_images)
    if len(pictures.labels) != len(pictures.support) or not pictures.queries:
        found = (
            f"{len(pictures.support)} support images, {len(pictures.labels)} labels, {len(pictures.queries)} queries"
        )
        raise BadEpisode(f"every support image needs one label, and there must be a query; found {found}")
    if len(set(pictures.labels)) < 2:
        raise BadEpisode("there must be support images of at least two classes")
    question = ask(house, form)
    resizing = Resizing.of(question.folder)
    named = [*((f"support image {i}", data) for i, data in enumerate(pictures.support))]
    named += [(f"query image {i}", data) for i, data in enumerate(pictures.queries)]
    return question, torch.stack(
        [
            read_picture(data, where.capitalize(), question.px, settings.max_image_pixels, resizing)
            for where, data in named
        ]
    )


def ask(house: House, form: PredictionForm) -> Question:
    """The question with its adapters resolved. Raises UnknownReference, BadReference, Refusal."""
    shelves = house.shelves
    named = shelves.registry.base(form.model) if form.model else None
    if form.adapters is not None or form.model is None or (named and modality_of(named) == "image"):
        base = image_base(shelves, form.model)
        members = [_member(house, base, a.ref, a.weight, form.combine) for a in form.adapters or ()]
        if len(members) > house.settings.max_sources:
            detail = f"The set has {len(members)} adapters; at most {house.settings.max_sources} are applied together."
            raise Refusal(422, "too-many-sources", detail, field="adapters")
    elif named is None and form.model == house.settings.vision_base:  # known, but not made yet
        base, members = image_base(shelves, form.model), []
    else:
        version = _version(house, form.model)
        base = image_base(shelves, version.base_model)
        members = [Member(version.ref, version.digest, 1.0)]
    if form.combine == "ensemble":
        shares([member.weight for member in members])  # refused now, not after the images were seen
    for member in members:
        if abs(member.weight) > LARGEST_WEIGHT:
            detail = f"The weight of {member.ref} is {member.weight:g}; at most {LARGEST_WEIGHT:.3g} can be applied."
            raise Refusal(422, "bad-weights", detail, field="adapters")
    info = info_of(base)
    px = form.px or _distilled_px(house, members) or DEFAULT_PATCHES * info.sizes.patch_px
    most = house.settings.max_prediction_px
    if px % info.sizes.patch_px or px > most:
        detail = f"The side px must be a multiple of {info.sizes.patch_px} (the base's patch) up to {most}, found {px}."
        raise Refusal(422, "bad-size", detail, field="px")
    return Question(base, info.folder, ChosenSet(tuple(members), form.combine), px, form)


def _member(house: House, base: Base, ref: str, weight: float | None, combine: str) -> Member:
    weight = 1.0 if weight is None else weight
    if combine == "ensemble" and ref == base.name:
        return Member(ref, BARE_BASE, weight)
    version = _version(house, ref)
    if version.base_model != base.name:
        made_for = f"for '{version.base_model}'" if version.base_model else "for a base model that it does not name"
        detail = f"{version.ref} was made {made_for}; the prediction is one of '{base.name}'."
        raise Refusal(409, "other-base", detail, reference=version.ref, known=[base.name])
    return Member(version.ref, version.digest, weight)


def _version(house: House, ref: str) -> Version:
    try:
        version = in_force(house.registry.resolve(ref))
    except (BadReference, UnknownReference) as error:
        near = getattr(error, "near", [])
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        detail = f"There is no vision base and no adapter {ref[:120]!r}{hint}"
        raise Refusal(404, "unknown-reference", detail, reference=ref, near=near) from None
    current().check("generate", version.namespace)
    if not (version.predictable and version.base_known):
        detail = f"{version.ref} cannot predict from images. {' '.join(version.notes)}".strip()
        raise Refusal(422, "not-predictable", detail, reference=version.ref, reasons=list(version.notes))
    return version


def _distilled_px(house: House, members: Sequence[Member]) -> int | None:
    """The size of the images that the first distilled adapter of the set was distilled with."""
    for member in members:
        if member.digest != BARE_BASE:
            recipe = house.registry.resolve(f"sha256:{member.digest}").recipe or {}
            if recipe.get("method") == "recycle":
                return int(recipe["params"]["image_px"])
    return None


def _judged(house: House, question: Question, labels: Sequence[str], embedded: Sequence[Tensor]) -> dict[str, Any]:
    """Class probabilities of every query, from the embeddings of each member."""
    classes = list(dict.fromkeys(labels))
    known = torch.tensor([classes.index(label) for label in labels])
    members = torch.stack(
        [
            class_log_probabilities(
                own[len(labels) :],
                prototypes(own[: len(labels)], known, len(classes)),
                question.form.distance,
                question.form.temperature,
            )
            for own in embedded
        ],
        dim=1,
    )  # [queries, members, classes]
    if not torch.isfinite(members.exp()).all():
        detail = "The prediction holds NaN or Inf; the adapters, at these weights, take the network out of its range."
        raise Refusal(422, "non-finite-logits", detail)
    weights = shares([member.weight for member in question.chosen.members]) if _is_ensemble(question) else (1.0,)
    return {
        "object": "prediction",
        "model": question.base.name,
        **({"combine": "sum"} | question.chosen.as_json),
        "classes": classes,
        "predictions": [_prediction(classes, own, weights, _is_ensemble(question)) for own in members],
        "px": question.px,
        "precision": str(house.predictor.precision).removeprefix("torch."),
    }


def _is_ensemble(question: Question) -> bool:
    return question.chosen.combine == "ensemble"


def _prediction(classes: Sequence[str], logs: Tensor, weights: Sequence[float], ensemble: bool) -> dict[str, Any]:
    """One query's, of members' log-probabilities [members, classes]."""
    found = mean_prediction(logs, weights)
    probabilities = found.logprobs.exp().tolist()
    best = int(found.logprobs.argmax())
    said = {"label": classes[best], "probabilities": dict(zip(classes, probabilities, strict=True))}
    return said | ({"uncertainty": asdict(found.uncertainty)} if ensemble else {"entropy": found.uncertainty.entropy})
