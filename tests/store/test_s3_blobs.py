"""Blobs in a real S3 server: the contract, crashes, a cache, and faults on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import obstore
import pytest

from store.blob_cache import BlobCache
from store.blob_errors import DamagedBlob, MissingBlob, ObjectStoreDenied, ObjectStoreUnavailable
from store.s3 import PART_BYTES
from store.s3_blobs import S3Blobs, blob_key
from store.s3_leftovers import sweep_unfinished
from tests.faulty_proxy import FaultyProxy
from tests.object_store import ObjectStore
from tests.store.blobs_contract import DATA, DIGEST, BlobsContract
from tests.store.making import put

LARGE = os.urandom(1 << 20) * 20
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()


class TestS3Blobs(BlobsContract):
    @pytest.fixture
    def blobs(self, s3_blobs: S3Blobs) -> S3Blobs:
        return s3_blobs


def objects(blobs: S3Blobs) -> list[str]:
    return [key for prefix in ("sha256/", "staging/", "direct/") for key, _ in blobs.keys(prefix)]


def test_a_large_blob_goes_in_parts_and_comes_back(s3_blobs: S3Blobs, tmp_path: Path) -> None:
    assert len(LARGE) > 2 * PART_BYTES
    put(s3_blobs, LARGE)
    assert objects(s3_blobs) == [blob_key(LARGE_DIGEST)]
    elsewhere = S3Blobs(s3_blobs.place, BlobCache(tmp_path / "elsewhere", 1))
    assert elsewhere.path(LARGE_DIGEST).read_bytes() == LARGE
    assert b"".join(elsewhere.read(LARGE_DIGEST)) == LARGE


def test_more_large_blobs_at_once_than_may_stream_meanwhile(s3_blobs: S3Blobs) -> None:
    stagings = [s3_blobs.stage() for _ in range(6)]
    for number, staging in enumerate(stagings):
        staging.write(LARGE[: 9 << 20])
        staging.write(bytes([number]))
    digests = [staging.commit() for staging in stagings]
    assert sorted(objects(s3_blobs)) == sorted(map(blob_key, digests))
    assert s3_blobs.sweep_staging(0) == 0


def test_a_large_blob_that_is_given_up_leaves_nothing(s3_blobs: S3Blobs) -> None:
    with s3_blobs.stage() as staging:
        staging.write(LARGE)
    assert objects(s3_blobs) == []
    assert s3_blobs.sweep_staging(0) == 0


WRITE_AND_WAIT = """
import json, sys, time
from pathlib import Path
from store.blob_cache import BlobCache
from store.s3 import S3Place
from store.s3_blobs import S3Blobs
blobs = S3Blobs(S3Place(**json.loads(sys.argv[1])), BlobCache(Path(sys.argv[2]), 1 << 20))
with blobs.stage() as staging:
    for _ in range(30):
        staging.write(bytes(1 << 20))
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_only_what_the_sweep_removes(s3_blobs: S3Blobs) -> None:
    folder = s3_blobs.cache.files.root
    command = [sys.executable, "-c", WRITE_AND_WAIT, json.dumps(asdict(s3_blobs.place)), str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert objects(s3_blobs) == []
    assert s3_blobs.sweep_staging(3600) == 0, "not old enough"
    assert sweep_unfinished(s3_blobs.place, 0, dry_run=True) == 1
    assert s3_blobs.sweep_staging(0, dry_run=True) == 2, "the local file and the unfinished upload"
    assert s3_blobs.sweep_staging(0) == 2
    assert s3_blobs.sweep_staging(0) == 0


def test_copies_are_fetched_once_verified_and_evicted_when_nobody_holds_them(s3_blobs: S3Blobs, tmp_path: Path) -> None:
    pieces = [bytes([n]) * 1000 for n in range(5)]
    digests = [put(s3_blobs, piece).digest for piece in pieces]
    cache = BlobCache(tmp_path / "small", 2500)
    small = S3Blobs(s3_blobs.place, cache)
    held = small.path(digests[0])
    for digest, piece in zip(digests, pieces, strict=True):
        assert small.path(digest).read_bytes() == piece
    kept = {path.name for path in (cache.files.root / "sha256").glob("??/*")}
    assert kept == {digests[0], digests[4]}, "the one that is held, and the last one"
    assert held.read_bytes() == pieces[0]
    del held
    small.path(digests[1])
    assert not (cache.files.root / "sha256" / digests[0][:2] / digests[0]).exists()


def test_another_process_evicts_nothing_that_is_held_here(s3_blobs: S3Blobs) -> None:
    put(s3_blobs, DATA)
    held = s3_blobs.path(DIGEST)
    evict = "import sys; from pathlib import Path; from store.blob_cache import BlobCache;"
    evict += "BlobCache(Path(sys.argv[1]), 0).make_room()"
    subprocess.run([sys.executable, "-c", evict, s3_blobs.cache.files.root], check=True)
    assert held.read_bytes() == DATA
    del held
    subprocess.run([sys.executable, "-c", evict, s3_blobs.cache.files.root], check=True)
    assert s3_blobs.cache.find(DIGEST) is None
    assert s3_blobs.path(DIGEST).read_bytes() == DATA


def test_damaged_bytes_are_never_handed_out(s3_blobs: S3Blobs, tmp_path: Path) -> None:
    put(s3_blobs, DATA)
    obstore.put(s3_blobs.store, blob_key(DIGEST), DATA[:-1] + b"?")
    elsewhere = S3Blobs(s3_blobs.place, BlobCache(tmp_path / "elsewhere", 1 << 20))
    with pytest.raises(DamagedBlob, match=f"sha256:{DIGEST}"):
        elsewhere.path(DIGEST)
    elsewhere.set_aside(DIGEST)
    with pytest.raises(MissingBlob):
        elsewhere.path(DIGEST)
    assert [key for key, _ in elsewhere.keys("damaged/")] == [f"damaged/{DIGEST}"]


@pytest.mark.parametrize("data", [DATA, LARGE])
def test_an_object_of_another_size_is_healed_by_the_next_upload(s3_blobs: S3Blobs, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    obstore.put(s3_blobs.store, blob_key(digest), b"cut")
    put(s3_blobs, data)
    assert b"".join(s3_blobs.read(digest)) == data


def test_renewed_blobs_count_as_new_and_marks_go_with_them(s3_blobs: S3Blobs) -> None:
    put(s3_blobs, DATA)
    assert s3_blobs.renew(DIGEST)
    assert 0 <= s3_blobs.age(DIGEST) + 1 < 60
    assert dict(s3_blobs.ages())[DIGEST] < 60
    assert s3_blobs.remove(DIGEST)
    assert list(s3_blobs.keys("renewed/")) == []


def test_what_was_sent_to_a_presigned_url_is_looked_at_before_it_counts(s3_blobs: S3Blobs) -> None:
    url = s3_blobs.presigned_put("one", 60)
    assert s3_blobs.direct_size("one") is None
    with pytest.raises(MissingBlob):
        s3_blobs.receive_direct("one")
    httpx.put(url, content=LARGE).raise_for_status()
    assert s3_blobs.direct_size("one") == len(LARGE)
    with s3_blobs.receive_direct("one") as staging:
        httpx.put(url, content=b"something else, at the last moment").raise_for_status()
        assert staging.digest == LARGE_DIGEST
        assert staging.path.read_bytes() == LARGE
        assert staging.commit(LARGE_DIGEST) == LARGE_DIGEST
    assert b"".join(s3_blobs.read(LARGE_DIGEST)) == LARGE
    answer = httpx.get(s3_blobs.presigned_get(LARGE_DIGEST, 60), headers={"range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, LARGE[5:10])
    s3_blobs.drop_direct("one")
    assert objects(s3_blobs) == [blob_key(LARGE_DIGEST)]


def test_wrong_keys_and_no_server_are_said_in_a_sentence(s3: ObjectStore, tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "other", 1 << 20)
    with pytest.raises(ObjectStoreDenied, match="refuses this service's keys"):
        put(S3Blobs(s3.place(secret_key="wrong"), cache), DATA)
    gone = S3Blobs(s3.place(endpoint="http://127.0.0.1:9", retries=1, patience_s=1.0), cache)
    with pytest.raises(ObjectStoreUnavailable, match="nothing was stored; try again"):
        put(gone, DATA)
    with pytest.raises(ObjectStoreUnavailable):
        put(gone, LARGE)
    with pytest.raises(ObjectStoreUnavailable):
        gone.exists(DIGEST)
    assert list(cache.files.staging.iterdir()) == []
    assert list(cache.files.ages()) == []


class TestFaults:
    @pytest.fixture
    def proxy(self, s3: ObjectStore) -> Iterator[FaultyProxy]:
        with FaultyProxy(s3.endpoint) as proxy:
            yield proxy

    @pytest.fixture
    def faulty(self, proxy: FaultyProxy, s3_blobs: S3Blobs, tmp_path: Path) -> S3Blobs:
        """The same bucket, through the proxy."""
        place = replace(s3_blobs.place, endpoint=proxy.url, patience_s=2.0)
        return S3Blobs(place, BlobCache(tmp_path / "faulty", 64 << 20), staging_grace_s=0)

    def test_a_few_failures_are_survived(self, proxy: FaultyProxy, faulty: S3Blobs, s3_blobs: S3Blobs) -> None:
        proxy.fail_next = 3
        put(faulty, DATA)
        assert s3_blobs.path(DIGEST).read_bytes() == DATA

    def test_many_failures_store_nothing(self, proxy: FaultyProxy, faulty: S3Blobs, s3_blobs: S3Blobs) -> None:
        proxy.fail_next = 10_000
        for data in (DATA, LARGE):
            with pytest.raises(ObjectStoreUnavailable):
                put(faulty, data)
        proxy.fail_next = 0
        assert objects(s3_blobs) == []
        assert list(faulty.cache.files.staging.iterdir()) == []
        put(faulty, LARGE)
        assert b"".join(s3_blobs.read(LARGE_DIGEST)) == LARGE

    def test_an_answer_that_breaks_off_is_asked_again(
        self, proxy: FaultyProxy, faulty: S3Blobs, s3_blobs: S3Blobs
    ) -> None:
        put(s3_blobs, LARGE)
        proxy.cut_next, proxy.cut_after = 2, 1 << 20
        assert faulty.path(LARGE_DIGEST).read_bytes() == LARGE
        assert proxy.cut_next == 0

    def test_answers_that_always_break_off_are_an_error_and_no_file(
        self, proxy: FaultyProxy, faulty: S3Blobs, s3_blobs: S3Blobs
    ) -> None:
        put(s3_blobs, LARGE)
        proxy.cut_next, proxy.cut_after = 10_000, 1 << 20
        with pytest.raises(ObjectStoreUnavailable):
            faulty.path(LARGE_DIGEST)
        assert list(faulty.cache.files.ages()) == []
        assert list(faulty.cache.files.staging.iterdir()) == []
