"""The bounded folder: whole files or none, the least recently used leave, damage is never believed."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from merging.file_cache import FileCache, cache_key


def keys(count: int) -> list[str]:
    return [cache_key("test", [str(i)]) for i in range(count)]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_put_is_there_for_other_processes_too(tmp_path: Path) -> None:
    one, other = keys(2)
    FileCache(tmp_path / "c", 10_000).put(one, b"payload")
    again = FileCache(tmp_path / "c", 10_000)
    assert again.get(one) == b"payload"
    assert again.get(other) is None
    again.put(one, b"")
    assert again.get(one) == b""


def test_keys_do_not_depend_on_how_parts_are_joined() -> None:
    assert len({cache_key("k", ["ab", "c"]), cache_key("k", ["a", "bc"]), cache_key("ka", ["b", "c"])}) == 3


@pytest.mark.parametrize("keep", [0, 1, 31, 32, 100, 131])
def test_a_damaged_file_is_removed_not_believed(tmp_path: Path, keep: int) -> None:
    files, (key,) = FileCache(tmp_path, 10_000), keys(1)
    files.put(key, bytes(100))
    whole = (tmp_path / key).read_bytes()
    (tmp_path / key).write_bytes(whole[:keep])
    assert files.get(key) is None
    files.put(key, bytes(100))
    (tmp_path / key).write_bytes(whole[:50] + b"\x01" + whole[51:])
    assert files.get(key) is None
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_leave(tmp_path: Path) -> None:
    files = FileCache(tmp_path, 10_000)
    names = keys(20)
    for age, key in enumerate(reversed(names[:9])):
        files.put(key, bytes(968))
        os.utime(tmp_path / key, (1000 + age, 1000 + age))  # names[0] is the youngest
    assert files.get(names[8]) is not None  # used now, so the oldest is names[7]
    for key in names[9:12]:
        files.put(key, bytes(968))
    assert size_of(tmp_path) <= 10_000
    assert files.get(names[8]) is not None
    assert files.get(names[7]) is None
    assert all(files.get(key) is not None for key in names[9:12])


def test_the_bound_holds_whatever_is_put(tmp_path: Path) -> None:
    files = FileCache(tmp_path, 10_000)
    for i, key in enumerate(keys(200)):
        files.put(key, bytes(37 * i % 900))
        assert size_of(tmp_path) <= 10_500
    files.put(keys(1)[0], bytes(10_001))
    assert size_of(tmp_path) <= 10_500
    FileCache(tmp_path / "none", 0).put(keys(1)[0], b"")
    assert not (tmp_path / "none").exists()


def put_for_ever(folder: Path) -> None:
    files = FileCache(folder, 100_000)
    for key in keys(100_000):
        files.put(key, key.encode() * 100)


def test_a_kill_leaves_only_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    process = multiprocessing.get_context("fork").Process(target=put_for_ever, args=(folder,))
    process.start()
    while not folder.exists() or sum(1 for _ in folder.iterdir()) < 5:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    files = FileCache(folder, 100_000)
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert names
    assert all(files.get(name) == name.encode() * 100 for name in names)


def test_what_a_killed_writer_left_is_removed_later(tmp_path: Path) -> None:
    left, fresh = tmp_path / ".new-left", tmp_path / ".new-fresh"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    FileCache(tmp_path, 10_000).put(keys(1)[0], b"x")
    assert (left.exists(), fresh.exists()) == (False, True)
