"""Every exception that leaves a handler, as an HTTP answer."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from app.complaints import invalid_request
from app.errors import BROKEN, DISK_FULL, ROOTS, describe, is_disk_full, sentence
from app.hub.answers import error_headers, is_hub
from app.hub.not_offered import not_offered
from app.limits import BodyTooLarge
from app.lorax_answers import LORAX, error_type
from app.observing.failures import count_storage_error
from app.problems import Refusal, problem_response, slug_of

log = logging.getLogger(__name__)

OPENAI = ("/v1/chat/", "/v1/completions", "/v1/models", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
UNPARSED = "There was an error parsing the body"  # the framework's words for bytes that json.loads chokes on


async def on_known(request: Request, error: Exception) -> Response:
    """Errors that a room, or this one, raised on purpose."""
    status, slug, detail, extras = describe(error)
    count_storage_error(error)
    if status == 503:  # passes by itself
        log.warning("%s %s: %s", request.method, request.url.path, error)
    elif status >= 500 and status != 504:  # a deadline was the client's own
        log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    headers = {"retry-after": str(extras.get("retry_after_s", 1))} if status in (429, 503) else {}
    if isinstance(error, Refusal):
        headers |= error.headers
    return respond(request, status, slug, detail, extras, headers)


async def on_validation(request: Request, error: Exception) -> Response:
    """A request that does not have the declared form."""
    assert isinstance(error, RequestValidationError)
    return await on_known(request, invalid_request(error.errors()))


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
    if error.status_code == 404 and (refused := not_offered(path)) is not None:
        return respond(request, 404, "not-offered", refused)
    if error.status_code == 404 and b"%2f" in request.scope.get("raw_path", b"").lower():
        return respond(request, 422, "invalid-name", "A name in an address must not hold a slash.")
    if error.status_code == 400:  # how the framework refuses bodies that it cannot take apart
        unread = "The body is not JSON that can be parsed."
        return respond(request, 422, "invalid-request", unread if error.detail == UNPARSED else sentence(error.detail))
    detail = details.get(error.status_code, sentence(str(error.detail)))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers = {"allow": ", ".join(methods_at(request))}
    return respond(request, error.status_code, slug_of(error.status_code), detail, headers=headers)


def methods_at(request: Request) -> list[str]:
    """Every method that this address takes; the framework names those of one route only."""
    found: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        if isinstance(context.route, Route) and context.route.matches(request.scope)[0] is not Match.NONE:
            found |= context.route.methods or set()
    return sorted(found)


async def on_storage(request: Request, error: Exception) -> Response:
    """A full disk is the operator's to mend and the client's to hear of; anything else is a bug."""
    count_storage_error(error)
    if not is_disk_full(error):
        raise error
    log.error("%s %s: the disk is full", request.method, request.url.path)
    return respond(request, *DISK_FULL)


async def on_text(request: Request, _: Exception) -> Response:
    """JSON can spell half a surrogate pair, which is no text that could be kept or sent."""
    detail = "Text in the request cannot be written as UTF-8: it holds half a surrogate pair."
    return respond(request, 422, "unkeepable-text", detail)


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
    app.add_exception_handler(UnicodeEncodeError, on_text)
    app.add_exception_handler(OSError, on_storage)
    app.add_exception_handler(OperationalError, on_storage)
    app.add_exception_handler(Exception, on_unexpected)


def respond(
    request: Request,
    status: int,
    slug: str,
    detail: str,
    extras: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The problem; also where clients of OpenAI's and the Hub's protocol look for it, at their addresses."""
    members = dict(extras or {})
    if request.url.path.startswith(OPENAI):
        error = {"message": detail, "type": slug, "param": members.get("field"), "code": slug}
        members["error"] = error
    if request.url.path in LORAX:
        members |= {"error": detail, "error_type": error_type(status)}
    if is_hub(request.url.path):
        headers = {**(headers or {}), **error_headers(request.url.path, slug, detail, members)}
        members["error"] = detail
    return problem_response(status, slug, detail, members, headers)
