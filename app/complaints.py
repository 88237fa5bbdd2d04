"""What pydantic finds wrong with a request, in sentences that name the field."""

from collections.abc import Sequence
from typing import Any

from app.problems import Refusal
from app.schemas import KEEPABLE

_IN_WORDS = 3
_LISTED = 20


def invalid_request(errors: Sequence[Any]) -> Refusal:
    """The refusal of a request with these pydantic errors: the first few in words, more of them as a list."""
    complaints = [complaint(error) for error in errors]
    detail = " ".join(text for _, text in complaints[:_IN_WORDS])
    if len(complaints) > _IN_WORDS:
        detail += f" And {len(complaints) - _IN_WORDS} more."
    listed = [{"field": field, "detail": text} for field, text in complaints[:_LISTED]]
    return Refusal(422, "invalid-request", detail, field=complaints[0][0], errors=listed)


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
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == KEEPABLE:
        return field, f"{name}: text must not hold the character NUL (U+0000)."
    return field, f"{name}: {_decapitalised(error['msg'])}."


def _decapitalised(message: str) -> str:
    message = message.removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:]
