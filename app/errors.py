"""From exceptions to problem JSON: one row for each class of error that a request can meet.

The rooms below say what is wrong in one sentence; this table adds the HTTP status and the problem's slug. A class
without a row takes its nearest ancestor's; a test asks that every leaf has a row of its own.
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.limits import BodyTooLarge
from app.problems import Refusal, problem, problem_response, slug_of
from deltas import errors as deltas
from merging import errors as merging
from serving import errors as serving
from store import errors as store

log = logging.getLogger(__name__)

Row = tuple[int, str]

TABLE: dict[type[Exception], Row] = {
    deltas.BadFile: (422, "bad-file"),
    deltas.BadConfig: (422, "bad-config"),
    deltas.BadTensors: (422, "bad-tensors"),
    deltas.NonFiniteTensor: (422, "non-finite-tensor"),
    deltas.UnknownModule: (422, "unknown-module"),
    deltas.ShapeMismatch: (422, "shape-mismatch"),
    deltas.NotLowRank: (422, "not-low-rank"),
    merging.UnknownMethod: (422, "unknown-method"),
    merging.BadParams: (422, "bad-params"),
    merging.BadWeights: (422, "bad-weights"),
    merging.BadRank: (422, "bad-rank"),
    merging.BaseMismatch: (422, "different-bases"),
    merging.ModuleMismatch: (422, "module-mismatch"),
    merging.NotMergeable: (422, "not-mergeable"),
    merging.MergeCancelled: (409, "merge-cancelled"),
    store.InvalidName: (422, "invalid-name"),
    store.BadReference: (422, "bad-reference"),
    store.BadCursor: (422, "bad-cursor"),
    store.UnknownReference: (404, "unknown-reference"),
    store.UnknownParent: (409, "source-deleted"),
    store.UnknownJob: (404, "unknown-job"),
    store.JobStalled: (500, "worker-died"),
    store.JobNotRunning: (409, "job-not-running"),
    store.MissingBlob: (422, "missing-blob"),
    store.DigestMismatch: (422, "digest-mismatch"),
    store.VersionInUse: (409, "version-in-use"),
    store.StorageFull: (507, "storage-full"),
    store.StorageBusy: (503, "storage-busy"),
    store.UnsupportedDatabase: (500, "unsupported-database"),
    serving.BaseUnavailable: (503, "base-unavailable"),
    serving.BaseUnsupported: (503, "base-unsupported"),
    serving.AdapterNotServable: (422, "not-servable"),
    serving.AdapterModuleMissing: (422, "unknown-module"),
    serving.AdapterShapeMismatch: (422, "shape-mismatch"),
    serving.AdapterLoadFailed: (500, "adapter-load-failed"),
    serving.SetTooLarge: (422, "set-too-large"),
    serving.EmptyPrompt: (422, "empty-prompt"),
    serving.TokenOutOfRange: (422, "token-out-of-range"),
    serving.PromptTooLong: (422, "prompt-too-long"),
    serving.InvalidSampling: (422, "invalid-sampling"),
    serving.NonFiniteLogits: (422, "non-finite-logits"),
    serving.QueueFull: (429, "queue-full"),
    serving.EngineClosed: (503, "engine-closed"),
    serving.StepFailed: (500, "step-failed"),
}

ROOTS = (deltas.DeltaError, merging.MergeError, store.StoreError, serving.ServingError)

# Fields that are no extras: paths and URLs of this machine are for the operator; the sentence says what is missing.
PRIVATE = frozenset({"place", "url", "searched", "missing"})

OPENAI = ("/v1/chat/", "/v1/completions", "/v1/models")
UNPARSED = "There was an error parsing the body"  # the framework's words for bytes that json.loads chokes on
DISK_FULL = (507, "storage-full", "The disk is full; nothing of this request was stored.")
BROKEN = (500, "internal-error", "Something broke inside the service; its log says what.")


def row_of(error: BaseException) -> Row | None:
    """The table's row for this error, by its nearest listed class."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return None


def describe(error: BaseException) -> tuple[int, str, str, dict[str, Any]]:
    """(status, slug, sentence, extras) of any exception; foreign ones become a 500 that gives nothing away."""
    if isinstance(error, Refusal):
        return error.status, error.slug, error.detail, error.extras
    if isinstance(error, BodyTooLarge):
        return 413, "body-too-large", str(error.detail), {"limit_bytes": error.limit_bytes}
    row = row_of(error)
    if isinstance(error, store.StorageFull) or (row is None and is_disk_full(error)):
        return (*DISK_FULL, {})
    if row is not None:
        return (*row, sentence(str(error)), extras_of(error))
    return (*BROKEN, {})


def as_problem(error: BaseException) -> dict[str, Any]:
    """The problem JSON of any exception, as kept with a failed job."""
    return problem(*describe(error))


def extras_of(error: BaseException) -> dict[str, Any]:
    """The error's public fields, for programs."""
    return {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and name not in PRIVATE and value is not None
    }


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if isinstance(error, OperationalError) and "disk is full" in str(error.orig):
            return True
        error = error.__cause__ or error.__context__
    return False


def sentence(text: str) -> str:
    """The text with a full stop and, unless it begins with the name of a thing (lora_alpha), a capital letter."""
    text = text.strip()
    first = text.partition(" ")[0]
    begin = text[:1].upper() if first.isalpha() else text[:1]
    return begin + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def complaint(error: dict[str, Any]) -> tuple[str, str]:
    """(field, sentence) of one of pydantic's complaints. Never the input: it may be NaN, secret or huge."""
    where = [str(part) for part in error["loc"]]
    place = where.pop(0) if where and where[0] in ("body", "query", "path", "header") else "body"
    field = ".".join(where)
    if error["type"] == "json_invalid":
        return "", f"The body is not valid JSON: {error.get('ctx', {}).get('error', 'it cannot be parsed')}."
    if not field:
        return "", f"The {place}: {_decapitalised(error['msg'])}."
    name = f"Query parameter '{field}'" if place == "query" else f"Field '{field}'"
    if error["type"] == "missing":
        return field, f"{name} is missing."
    if error["type"] == "extra_forbidden":
        return field, f"{name} is not known here."
    return field, f"{name}: {_decapitalised(error['msg'])}."


def _decapitalised(message: str) -> str:
    message = message.removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:]


def respond(
    request: Request,
    status: int,
    slug: str,
    detail: str,
    extras: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The problem; at OpenAI's addresses also in the member `error`, where its clients look for a message."""
    members = dict(extras or {})
    if request.url.path.startswith(OPENAI):
        error = {"message": detail, "type": slug, "param": members.get("field"), "code": slug}
        members["error"] = error
    return problem_response(status, slug, detail, members, headers)


def validation_problem(request: Request, errors: Sequence[Any]) -> Response:
    """422 that names the first fields that are wrong, at most three in words."""
    complaints = [complaint(error) for error in errors]
    detail = " ".join(text for _, text in complaints[:3])
    if len(complaints) > 3:
        detail += f" And {len(complaints) - 3} more."
    extras: dict[str, Any] = {
        "field": complaints[0][0] if complaints else "",
        "errors": [{"field": field, "detail": text} for field, text in complaints[:20]],
    }
    return respond(request, 422, "invalid-request", detail, extras)


async def on_known(request: Request, error: Exception) -> Response:
    """Errors that a room, or this one, raised on purpose."""
    status, slug, detail, extras = describe(error)
    if status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return respond(request, status, slug, detail, extras, headers)


async def on_validation(request: Request, error: Exception) -> Response:
    """A request that does not have the declared form."""
    assert isinstance(error, RequestValidationError)
    return validation_problem(request, error.errors())


async def on_http(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown addresses, wrong methods, bodies that cannot be parsed."""
    assert isinstance(error, HTTPException)
    if isinstance(error, BodyTooLarge):
        return await on_known(request, error)
    path = request.url.path
    details = {
        404: f"There is nothing at {path!r}.",
        405: f"{request.method} is not possible at {path!r}; the Allow header lists what is.",
    }
    if error.status_code == 404 and b"%2f" in request.scope.get("raw_path", b"").lower():
        return respond(request, 422, "invalid-name", "A name in an address must not hold a slash.")
    if error.detail == UNPARSED:
        return respond(request, 422, "invalid-request", "The body is not JSON that can be parsed.")
    detail = details.get(error.status_code, sentence(str(error.detail)))
    return problem_response(error.status_code, slug_of(error.status_code), detail, headers=dict(error.headers or {}))


async def on_storage(request: Request, error: Exception) -> Response:
    """A full disk is the operator's to mend and the client's to hear of; anything else is a bug."""
    if not is_disk_full(error):
        raise error
    log.error("%s %s: the disk is full", request.method, request.url.path)
    return respond(request, *DISK_FULL)


async def on_disconnect(_: Request, __: Exception) -> Response:
    """The client hung up; nobody reads this, and whatever was staged is already gone."""
    return Response(status_code=499)


async def on_unexpected(request: Request, _: Exception) -> Response:
    """A bug: the server logs the trace, the client learns only that it happened."""
    return respond(request, *BROKEN)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of this application a problem JSON."""
    for root in (Refusal, *ROOTS):
        app.add_exception_handler(root, on_known)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(OSError, on_storage)
    app.add_exception_handler(OperationalError, on_storage)
    app.add_exception_handler(Exception, on_unexpected)
