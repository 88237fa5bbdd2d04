"""The bodies of a prediction, taken apart: multipart (files as they are) and JSON (base64)."""

import base64
import binascii
import json
from pathlib import PurePosixPath

from fastapi import Request
from starlette.datastructures import UploadFile

from app.predicting import Pictures
from app.problems import Refusal
from app.schemas_recycle import PredictionBody, PredictionForm
from app.settings import Settings
from app.upload_forms import read_json_body, utf8_form, validated

FIELDS = tuple(PredictionForm.model_fields)
PARTS = ("support", "labels", "query", *FIELDS)
_LARGEST_FIELD_BYTES = 1024 * 1024


async def read_prediction(request: Request, settings: Settings) -> tuple[PredictionForm, Pictures]:
    """What is asked and about which images, however it was sent. Raises Refusal."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_multipart(request, settings)
    if kind == "application/json":
        body = await read_json_body(request, PredictionBody)
        support = [_decoded(one.image, f"Support image {index}") for index, one in enumerate(body.support)]
        queries = [_decoded(one, f"Query image {index}") for index, one in enumerate(body.queries)]
        return body, Pictures(support, [one.label for one in body.support], queries)
    raise Refusal(415, "unsupported-media-type", "A prediction is sent as multipart/form-data or as application/json.")


async def _from_multipart(request: Request, settings: Settings) -> tuple[PredictionForm, Pictures]:
    """Files `support` and `query`, one part for each image. A support image's label is the folder in its file name
    ("cats/1.png"), or all labels come as fields `labels`, in order."""
    most = settings.max_prediction_images
    async with utf8_form(
        request, max_files=most + 1, max_fields=most + len(PARTS), max_part_size=_LARGEST_FIELD_BYTES
    ) as form:
        for name, _ in form.multi_items():
            if name not in PARTS:
                detail = f"Part {name[:80]!r} is not known here; the parts are {', '.join(PARTS)}."
                raise Refusal(422, "invalid-request", detail, field=name[:80], known=list(PARTS))
        support, queries = _files(form.getlist("support"), "support"), _files(form.getlist("query"), "query")
        given = [str(label) for label in form.getlist("labels")]
        labels = given or [_folder(file, index) for index, file in enumerate(support)]
        fields: dict[str, object] = {name: form[name] for name in FIELDS if name in form and form[name] != ""}
        if isinstance(fields.get("adapters"), str):
            fields["adapters"] = _json(str(fields["adapters"]))
        asked = validated(PredictionForm, fields)
        return asked, Pictures([await file.read() for file in support], labels, [await file.read() for file in queries])


def _files(parts: list[UploadFile | str], name: str) -> list[UploadFile]:
    if not all(isinstance(part, UploadFile) for part in parts):
        raise Refusal(422, "invalid-request", f"Part '{name}' must be a file (curl: -F {name}=@FILE).", field=name)
    return [part for part in parts if isinstance(part, UploadFile)]


def _folder(file: UploadFile, index: int) -> str:
    parent = PurePosixPath(file.filename or "").parent.name
    if not parent:
        detail = f"Support image {index} has no label: name its file label/name, or give `labels`, one for each image."
        raise Refusal(422, "invalid-request", detail, field="support")
    return parent


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(422, "invalid-request", "Part 'adapters' is not valid JSON.", field="adapters") from None


def _decoded(text: str, where: str) -> bytes:
    _, comma, data = text.partition(",") if text.startswith("data:") else ("", "", "")
    try:
        return base64.b64decode(data if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, "invalid-request", f"{where} is not base64.", field=where) from None
