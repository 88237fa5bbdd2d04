"""SPOLIA_* for the verbs that work on the service's own database and files, or are the service."""

from typing import TYPE_CHECKING, Any

from app.cli_output import fail

if TYPE_CHECKING:
    from pydantic import ValidationError

    from app.settings import Settings


def read_settings(**given: Any) -> "Settings":
    """The settings; what is `given` (and not None) wins over the variables. Ends with status 2 where one is wrong."""
    # Neither is needed by the other verbs, which start without them.
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail(_sentence(error), 2)


def _sentence(error: "ValidationError") -> str:
    """What is wrong with the first variable, and its value; a complaint about several shows none, since some are
    secrets."""
    first = error.errors(include_url=False)[0]
    said = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{said}."
    name = "_".join(str(part) for part in first["loc"]).upper()
    return f"SPOLIA_{name} is {first['input']!r}: {said[:1].lower()}{said[1:]}."
