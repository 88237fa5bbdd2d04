"""The API's description at /openapi.json: what FastAPI finds out by itself, and every problem that a call may meet.

Which problems those are follows from what a route declares (app.api.access), its method, and what is in its address.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts

from app.api.access import Needs
from app.openapi_links import describe_links
from app.problems import MEDIA_TYPE, Problem
from store.references import NAME_PATTERN

_WORDS = {
    401: "No API key was sent where one is needed, or it is not known, revoked or expired",
    403: "The key does not hold the scope that is needed there, or its quota is used up",
    404: "There is nothing of this name that the caller may see",
    410: "A version that is needed there was revoked; the answer says which one, and why",
    409: "What is there now stands against it",
    412: "The client speaks another version of the protocol than the service",
    413: "The body is larger than this address takes",
    415: "The body is of a kind that is not taken here",
    422: "Something that was sent is not as described, or makes no sense together",
    429: "The key, or its caller, has asked for too much at once; Retry-After says when to come back",
    500: "Something broke inside the service",
    502: "A server behind this one failed",
    503: "Not possible at this moment; Retry-After says when to come back",
    504: "It took longer than it was given",
    507: "The disk is full",
}
_TUS = "/v1/resumable-uploads"
_SEVERAL_KINDS = ("/versions", "/v1/predictions", "/paths-info/{revision}")
_NAME = f"^{NAME_PATTERN}$"
_FORMS = dict.fromkeys(("namespace", "name", "version", "alias", "filename"), _NAME)
_GENERATION = {"/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream", "/"}


class DescribedApi(FastAPI):
    """The application with its full description."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"].setdefault("schemas", {})["Problem"] = problem
            for context in iter_route_contexts(self.routes):
                describe_problems(document, context)
            describe_names(document)
            describe_links(document)
            for name in ("HTTPValidationError", "ValidationError"):  # the framework's own, which nobody gets here
                document["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def describe_names(document: dict[str, Any]) -> None:
    """Say of the parts of addresses that are names what names are."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in _FORMS:
                    parameter["schema"].setdefault("pattern", _FORMS[parameter["name"]])


def describe_problems(document: dict[str, Any], context: RouteContext) -> None:
    """Add to a route's operations the problems that it may answer with."""
    route = context.route
    if not isinstance(route, APIRoute) or not route.include_in_schema:
        return
    for method in route.methods or ():
        responses = document["paths"][route.path_format][method.lower()]["responses"]
        for status in problems_of(route, method):
            if status == 422:  # the framework describes one of its own
                responses["422"] = problem_entry(status)
            responses.setdefault(str(status), problem_entry(status))


def problems_of(route: APIRoute, method: str) -> list[int]:
    """The statuses of the problems that this route may answer with."""
    guards = [one.call for one in route.dependant.dependencies if isinstance(one.call, Needs)]
    found = {500}
    if guards:
        found |= {401, 429, 503}
    if any(guard.scope is not None for guard in guards):
        found.add(403)
    if route.param_convertors or method in ("POST", "DELETE"):
        found.add(404)
    if method != "GET" or route.param_convertors or route.dependant.query_params:
        found.add(422)
    if method in ("POST", "PUT", "PATCH"):
        found |= {413, 507}
    if method == "POST" and route.path.endswith(_SEVERAL_KINDS):
        found.add(415)
    if "version" in route.param_convertors or _names_versions(guards, route, method):
        found.add(410)
    if method not in ("GET", "HEAD"):
        found |= {409, 507}
    if "/commit/" in route.path:
        found.add(412)
    if route.path.startswith(_TUS):
        found |= {412, 415} if method == "PATCH" else {412}
    if route.path in _GENERATION:
        found |= {502, 504}
    return sorted(found)


def _names_versions(guards: list[Needs], route: APIRoute, method: str) -> bool:
    """Whether versions may be named in the body, or by the revision of a repository."""
    if "revision" in route.param_convertors:
        return True
    return method in ("POST", "PUT") and any(guard.scope in ("generate", "merge", "write") for guard in guards)


def problem_entry(status: int) -> dict[str, Any]:
    """One response of the document that is a problem."""
    headers: dict[str, Any] = {}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if status in (429, 503):
        headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds."}
    entry = {
        "description": _WORDS[status],
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    return entry | ({"headers": headers} if headers else {})
