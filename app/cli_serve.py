"""spolia serve: run the service in the foreground."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_output import fail


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (SPOLIA_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (SPOLIA_PORT, 8000).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept (SPOLIA_DATA_DIR, ./spolia-data).")
    ] = None,
) -> None:
    """Run the service; every setting is also a SPOLIA_* variable."""
    # These bring torch and the web server along, which takes seconds; the other verbs start without them.
    from pydantic import ValidationError

    from app.quick_start import loading

    with loading():
        from app.main import serve as run
        from app.problems import AppError
        from app.settings import Settings

    given: dict[str, Any] = {"host": host, "port": port, "data_dir": data_dir}
    try:
        run(Settings(**{name: value for name, value in given.items() if value is not None}))
    except AppError as error:
        fail(str(error))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        fail(f"SPOLIA_{name} is {first['input']!r}: {first['msg'].lower()}.", 2)
