"""What every blob backend must do. A backend's tests subclass BlobsContract and give the ``blobs`` fixture."""

import hashlib
import threading

import pytest

from store.blob_errors import DigestMismatch, MissingBlob
from store.blobs import Blobs

DATA = b"some adapter bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


class BlobsContract:
    def test_bytes_come_back_under_their_sha256(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            for start in range(0, len(DATA), 999):
                staging.write(DATA[start : start + 999])
            assert (staging.size, staging.digest) == (len(DATA), DIGEST)
            assert not blobs.exists(DIGEST)
            assert staging.commit() == DIGEST
        assert blobs.exists(DIGEST)
        assert blobs.size(DIGEST) == len(DATA)
        assert blobs.path(DIGEST).read_bytes() == DATA

    def test_the_empty_file_is_a_blob(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            digest = staging.commit()
        assert digest == hashlib.sha256().hexdigest()
        assert blobs.size(digest) == 0

    def test_leaving_without_commit_keeps_nothing(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            staging.write(DATA)
        assert not blobs.exists(DIGEST)
        assert blobs.sweep_staging(0) == 0

    def test_an_exception_keeps_nothing(self, blobs: Blobs) -> None:
        def hang_up() -> None:
            with blobs.stage() as staging:
                staging.write(DATA)
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            hang_up()
        assert not blobs.exists(DIGEST)
        assert blobs.sweep_staging(0) == 0

    def test_other_bytes_than_announced_are_refused(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            staging.write(DATA[:-1])
            with pytest.raises(DigestMismatch, match=f"announced sha256:{DIGEST}") as caught:
                staging.commit(expected=DIGEST)
        assert caught.value.size_bytes == len(DATA) - 1
        assert not blobs.exists(caught.value.actual)
        assert not blobs.exists(DIGEST)
        assert blobs.sweep_staging(0) == 0

    def test_the_same_bytes_are_kept_once(self, blobs: Blobs) -> None:
        for _ in range(2):
            with blobs.stage() as staging:
                staging.write(DATA)
                assert staging.commit(expected=DIGEST) == DIGEST
        assert [digest for digest, _ in blobs.ages()] == [DIGEST]
        assert blobs.sweep_staging(0) == 0

    def test_many_writers_of_the_same_bytes_agree(self, blobs: Blobs) -> None:
        def store() -> None:
            with blobs.stage() as staging:
                staging.write(DATA)
                staging.commit()

        threads = [threading.Thread(target=store) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [digest for digest, _ in blobs.ages()] == [DIGEST]
        assert blobs.path(DIGEST).read_bytes() == DATA
        assert blobs.sweep_staging(0) == 0

    def test_what_is_missing_is_named(self, blobs: Blobs) -> None:
        assert not blobs.exists(DIGEST)
        assert not blobs.renew(DIGEST)
        assert not blobs.remove(DIGEST)
        with pytest.raises(MissingBlob, match=DIGEST):
            blobs.size(DIGEST)
        with pytest.raises(MissingBlob, match=DIGEST):
            blobs.path(DIGEST)

    @pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "AB" * 32, "ab" * 32 + "\n"])
    def test_a_digest_is_never_taken_for_a_path(self, blobs: Blobs, digest: str) -> None:
        with pytest.raises(MissingBlob) as caught:
            blobs.path(digest)
        assert str(caught.value).isprintable()

    def test_a_removed_blob_is_gone(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            staging.write(DATA)
            staging.commit()
        assert blobs.remove(DIGEST)
        assert not blobs.exists(DIGEST)

    def test_a_sweep_spares_what_is_being_written(self, blobs: Blobs) -> None:
        with blobs.stage() as staging:
            staging.write(DATA)
            assert blobs.sweep_staging(0) == 0
            staging.commit()
        assert blobs.exists(DIGEST)
