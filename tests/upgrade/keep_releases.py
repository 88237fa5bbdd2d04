"""Keeps the code of earlier releases for the tests of upgrades: `python -m tests.upgrade.keep_releases`.

A fresh clone may be shallow, so their history is not counted on: `releases.tar.xz` has the Python files of each under
the number of the newest schema that it knows. No release was tagged yet; these two stand for the last ones.

0003   before PostgreSQL, keys, workers and listings: one machine, SQLite; the last that knows no newer schema
0006   PostgreSQL and workers; runs on a newer schema where SPOLIA_ALLOW_NEWER_SCHEMA says so
"""

import io
import lzma
import subprocess
import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "releases.tar.xz"
COMMITS = {
    "0003": "1aa6bf71b9debf3b712147c03ad629653262ad0d",
    "0006": "d06895fed0ea5dce3761af33e57dd0e60f4a616c",
}
ROOMS = ("alembic", "app", "deltas", "merging", "serving", "store")


def keep(commits: dict[str, str], archive: Path) -> None:
    """Write the archive; the same commits give the same bytes."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for release, commit in commits.items():
            tree = subprocess.run(["git", "archive", commit, *ROOMS], check=True, capture_output=True).stdout
            with tarfile.open(fileobj=io.BytesIO(tree)) as source:
                for member in sorted(source.getmembers(), key=lambda one: one.name):
                    if member.isfile() and member.name.endswith(".py"):
                        file = tarfile.TarInfo(f"{release}/{member.name}")  # without times and owners
                        file.size = member.size
                        target.addfile(file, source.extractfile(member))
    archive.write_bytes(lzma.compress(kept.getvalue(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    keep(COMMITS, ARCHIVE)
