"""spolia serve: run the service in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_output import fail
from app.cli_settings import read_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (SPOLIA_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (SPOLIA_PORT, 8000).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept (SPOLIA_DATA_DIR, ./spolia-data).")
    ] = None,
) -> None:
    """Run the service; every setting is also a SPOLIA_* variable."""
    # These bring torch and the web server along, which takes seconds; the other verbs start without them.
    from app.quick_start import loading

    with loading():
        from app.main import serve as run
        from app.problems import AppError

    settings = read_settings(host=host, port=port, data_dir=data_dir)
    try:
        run(settings)
    except AppError as error:
        fail(str(error))
