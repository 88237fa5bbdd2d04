"""What the command line says about a new key, as the service takes it."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

_SPAN = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def read_grants(texts: Sequence[str]) -> dict[str, list[str]]:
    """{"team": ["read", "write"]} of ["team=read,write"]. Raises ValueError.

    >>> read_grants(["team=read,write", "*=read"])
    {'team': ['read', 'write'], '*': ['read']}
    """
    grants: dict[str, list[str]] = {}
    for text in texts:
        place, equals, scopes = text.partition("=")
        if not (place and equals and scopes):
            raise ValueError(f"{text!r} is not NAMESPACE=SCOPE,SCOPE, such as team=read,write or '*=read'")
        grants.setdefault(place, []).extend(scope.strip() for scope in scopes.split(","))
    return grants


def read_expiry(text: str) -> datetime:
    """A moment from now on: 90d, 12h, 30m, or an ISO date or time (UTC where it names no zone). Raises ValueError."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return datetime.now(UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: write 90d, 12h, 30m or 2030-01-31") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
