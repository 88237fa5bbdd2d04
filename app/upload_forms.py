"""The bodies of an upload, taken apart: multipart forms (files spooled to disk) and JSON."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile

from app.complaints import invalid_request
from app.problems import Refusal
from app.schemas import VersionForm
from app.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
FILES = ("config", "weights", "card", "tokenizer", "head")
FIELDS = ("license", "tags", "base_model", "classes")


@dataclass(frozen=True, slots=True)
class Parts:
    """A multipart upload; `weights` is open until the form is left. Weights of some spellings need no config."""

    config: bytes | None
    weights: BinaryIO
    card: str | None
    tokenizer: bytes | None
    head: bytes | None
    form: VersionForm


@asynccontextmanager
async def utf8_form(
    request: Request, *, max_files: int, max_fields: int, max_part_size: int
) -> AsyncIterator[FormData]:
    """A form, taken apart; files go to disk as they arrive.

    Raises:
        Refusal: it declares another encoding than UTF-8. The framework would look for a codec of that name, and some
            of Python's make text of bytes that no answer can hold.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise Refusal(415, "unsupported-media-type", "Forms are read as UTF-8; leave the charset out.")
    async with request.form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size) as form:
        yield form


@asynccontextmanager
async def read_multipart(request: Request, settings: Settings) -> AsyncIterator[Parts]:
    """Take a multipart body apart. Files go to disk as they arrive; the total is bounded below this (app.limits).

    Raises:
        Refusal: a part is missing, unknown, given twice or too large.
    """
    largest_field = max(settings.max_config_bytes, settings.max_card_bytes, settings.max_tokenizer_bytes)
    async with utf8_form(
        request, max_files=len(FILES), max_fields=len(FILES) + len(FIELDS), max_part_size=largest_field
    ) as form:
        _check_parts(form)
        weights = form["weights"]
        if not isinstance(weights, UploadFile):
            raise Refusal(
                422, "invalid-request", "Part 'weights' must be a file (curl: -F weights=@FILE).", field="weights"
            )
        card = await _small(form.get("card"), "card", settings.max_card_bytes)
        yield Parts(
            config=await _small(form.get("config"), "config", settings.max_config_bytes),
            weights=weights.file,
            card=None if card is None else _text(card, "card"),
            tokenizer=await _small(form.get("tokenizer"), "tokenizer", settings.max_tokenizer_bytes),
            head=await _small(form.get("head"), "head", settings.max_head_bytes),
            form=validated(VersionForm, {name: form[name] for name in FIELDS if name in form}),
        )


def _check_parts(form: FormData) -> None:
    known = (*FILES, *FIELDS)
    for name, _ in form.multi_items():
        if name not in known:
            detail = f"Part {name[:80]!r} is not known here; the parts are {', '.join(known)}."
            raise Refusal(422, "invalid-request", detail, field=name[:80], known=list(known))
        if len(form.getlist(name)) > 1:
            raise Refusal(422, "invalid-request", f"Part '{name}' is given twice.", field=name)
    if "weights" not in form:
        raise Refusal(422, "invalid-request", "Part 'weights' is missing.", field="weights")


async def _small(part: UploadFile | str | None, name: str, limit: int) -> bytes | None:
    """A part that is read whole, whether it came as a file or as a plain field."""
    if part is None:
        return None
    data = part.encode() if isinstance(part, str) else await part.read(limit + 1)
    if len(data) > limit:
        detail = f"Part '{name}' is larger than the {limit} bytes that are accepted."
        raise Refusal(413, "body-too-large", detail, field=name, limit_bytes=limit)
    return data


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            422, "invalid-request", f"Part '{name}' is not UTF-8 text (byte {error.start}).", field=name
        ) from None


async def read_json_body(request: Request, model: type[Model]) -> Model:
    """A JSON body of this form; unlike the framework's parser it refuses NaN, Infinity and repeated keys by name."""
    try:
        document = json.loads(await request.body(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise Refusal(422, "invalid-request", f"The body is not valid JSON ({type(error).__name__}).") from None
    return validated(model, document)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            detail = f"Key {key[:80]!r} is given twice in one JSON object."
            raise Refusal(422, "invalid-request", detail, field=key[:80])
        document[key] = value
    return document


def _refuse_constant(name: str) -> Any:
    raise Refusal(422, "invalid-request", f"The body holds {name}, which is not JSON: every number must be finite.")


def validated(model: type[Model], document: object) -> Model:
    """The document as this model. Raises Refusal in the words that declared bodies get."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None
