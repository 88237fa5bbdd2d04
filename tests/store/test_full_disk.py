"""A full disk: a real small filesystem where mounting is allowed, a file size limit everywhere."""

import subprocess
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-W", "error", "-m", "tests.store.fill_disk"]
ROOT = Path(__file__).parents[2]


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_file_size_limit_loses_nothing(tmp_path: Path) -> None:
    done = _run("bash", "-c", 'ulimit -f 1024 && exec "$@"', "bash", *PROGRAM, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows kept" in done.stdout


def test_a_small_filesystem_loses_nothing(tmp_path: Path) -> None:
    # In a mount namespace of its own the filesystem disappears with the process; without the right to make one,
    # as an ordinary user's kernel may have it, the file size limit stands in for the disk's end.
    alone = next((way for way in (["unshare", "-m"], ["unshare", "-rm"]) if _can_mount(way, tmp_path)), None)
    if alone is None:
        fill = ["bash", "-c", 'ulimit -f 768 && exec "$@"', "bash"]
    else:
        fill = [*alone, "bash", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path)]
    done = _run(*fill, *PROGRAM, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows kept" in done.stdout


def _can_mount(alone: list[str], folder: Path) -> bool:
    return _run(*alone, "mount", "-t", "tmpfs", "tmpfs", folder).returncode == 0
