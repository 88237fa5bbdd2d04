"""Make a registry: `python -m benchmarks.registry.fill --folder /data/bench --adapters 1000000`."""

import argparse
from pathlib import Path

import psycopg

from benchmarks.measuring import machine, write_results
from benchmarks.registry.filling import connection_url, fill
from benchmarks.registry.server import server
from store.database import Database

SIZES = """
    SELECT relname, pg_table_size(oid) / 1e6, pg_indexes_size(oid) / 1e6, reltuples::bigint
    FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 0 ORDER BY 2 DESC
"""


def main() -> None:
    """Fill an empty database and say what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the server keeps its data")
    parser.add_argument("--adapters", type=int, default=1_000_000, help="how many; each has three versions")
    parser.add_argument("--processes", type=int, default=2, help="how many write side by side")
    asked = parser.parse_args()
    with server(asked.folder) as url:
        database = Database(url)
        database.migrate()
        database.close()
        took = fill(url, asked.adapters, asked.processes)
        with psycopg.connect(connection_url(url)) as connection:
            sizes = connection.execute(SIZES).fetchall()
    for step, seconds in took.items():
        print(f"{step:28} {seconds:9.1f} s")
    for table, data, indexes, count in sizes:
        print(f"{table:20} {count:>12,} rows {data:9.0f} MB {indexes:9.0f} MB of indexes")
    tables = [
        {"table": table, "rows": count, "mb": round(float(data)), "index_mb": round(float(indexes))}
        for table, data, indexes, count in sizes
    ]
    document = {"machine": machine(1), "adapters": asked.adapters, "seconds": took, "tables": tables}
    write_results(f"registry_fill_{asked.adapters}", document)


if __name__ == "__main__":
    main()
