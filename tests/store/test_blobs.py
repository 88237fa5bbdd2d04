"""Local blobs: the contract, crashes, and a full disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store.blobs import LocalBlobs
from tests.store.blobs_contract import DATA, DIGEST, BlobsContract
from tests.store.making import put


class TestLocalBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> LocalBlobs:
        return LocalBlobs(tmp_path / "blobs")


WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from store.blobs import LocalBlobs
with LocalBlobs(Path(sys.argv[1])).stage() as staging:
    staging.write(b"half of it")
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_writer_killed_half_way_leaves_nothing_visible(blobs: LocalBlobs) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(blobs.root)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    assert blobs.sweep_staging(0) == 0, "it still lives"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert list(blobs.ages()) == []
    assert len(list(blobs.staging.iterdir())) == 1
    assert blobs.sweep_staging(3600) == 0, "not old enough"
    assert blobs.sweep_staging(0) == 1
    assert list(blobs.staging.iterdir()) == []


def test_a_damaged_blob_is_healed_by_the_next_upload(blobs: LocalBlobs) -> None:
    put(blobs, DATA)
    os.truncate(blobs.path(DIGEST), 5)
    put(blobs, DATA)
    assert blobs.path(DIGEST).read_bytes() == DATA


def test_a_renewed_blob_counts_as_new(blobs: LocalBlobs) -> None:
    put(blobs, DATA)
    os.utime(blobs.path(DIGEST), (0, 0))
    assert dict(blobs.ages())[DIGEST] > 1e9
    assert blobs.renew(DIGEST)
    assert dict(blobs.ages())[DIGEST] < 60
