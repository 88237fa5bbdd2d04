"""Which process of a parallel run gets which tests, and when.

Whole files go to whichever process is free, as pytest-xdist's `loadfile` has it, but what takes minutes goes first:
a long file that begins last would leave the other processes idle. Folders whose servers take long to start stay in
one process, which starts them once.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# By seconds on two cores; what is not here takes less than half a minute.
LONGEST_FIRST = (
    "tests/vllm/",
    "tests/client/",
    "tests/e2e/test_kill.py",
    "tests/e2e/test_workers.py",
    "tests/merging/recycle/test_few_shot.py",
    "tests/e2e/test_composition.py",
    "tests/serving/test_peft.py",
    "tests/e2e/test_cluster.py",
    "tests/app/test_distillations.py",
    "tests/merging/recycle/test_killed.py",
    "tests/e2e/",
    "tests/app/test_hub_reading.py",
    "tests/app/test_pool.py",
    "tests/fuzz/",
)
ONE_PROCESS = ("tests/vllm/", "tests/client/")


def begins(nodeid: str) -> int:
    """The place in the order: the longest match of what is listed."""
    found = [start for start in LONGEST_FIRST if nodeid.startswith(start)]
    return LONGEST_FIRST.index(max(found, key=len)) if found else len(LONGEST_FIRST)


class SharingOut(LoadFileScheduling):
    """Files in the order of their collection; some folders count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in ONE_PROCESS if nodeid.startswith(folder)), super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharingOut | None:
    """Used for `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return SharingOut(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order, also without other processes."""
    items.sort(key=lambda item: begins(item.nodeid))
