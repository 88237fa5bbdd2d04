"""Answers that routes describe beside the usual one."""

from typing import Any

from pydantic import BaseModel

Described = dict[int | str, dict[str, Any]]

_OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that a handler reads by itself, with nothing that it refers to left outside.

    A reference inside the document counts from the document's root, where pydantic puts no definitions of such a body.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            whole = {**definitions[name], **node} if name in definitions else node
            return {key: resolved(value) for key, value in whole.items() if key != "$ref"}
        return [resolved(item) for item in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = resolved(schema)
    return inlined


def at_once(what: str) -> Described:
    """A 200 beside 201 or 202: nothing had to be made."""
    return {200: {"description": what, "content": _OBJECT}}


_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
EVENTS: dict[str, Any] = {"text/event-stream": {"itemSchema": _EVENT}}
STREAMED: Described = {200: {"description": "The answer, or with `stream` its pieces as they come", "content": EVENTS}}
FOLLOWED: Described = {200: {"description": "Server-sent events until the job has ended", "content": EVENTS}}
_FILE: dict[str, Any] = {"*/*": {}}
_PROBLEM: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
UNCHANGED: Described = {304: {"description": "The client has these bytes: its If-None-Match names them"}}
FILE: Described = {
    200: {"description": "The file", "content": _FILE},
    206: {"description": "The part that was asked for", "content": _FILE},
    307: {"description": "The file is to be read from the object store"},
    416: {"description": "The file has no such part", "content": _PROBLEM},
    **UNCHANGED,
}
MADE_FILE: Described = {200: {"description": "The file", "content": _FILE}, **UNCHANGED}
UNKNOWN: Described = {404: {"description": "A reference names nothing that the caller may see", "content": _PROBLEM}}
THERE_ALREADY: Described = {409: {"description": "There is one already; the answer says where", "content": _OBJECT}}
UNREAD: Described = {400: {"description": "The metadata cannot be read; the answer says why", "content": _OBJECT}}
UNNAMED: Described = {400: {"description": "A name that is needed is empty", "content": _PROBLEM}}
NOT_HERE: Described = {404: {"description": "These bytes are not here"}}
"""HEAD has no body, so neither has its refusal."""
