"""Uploads in parts: the contract on the local folder and in a real S3 server."""

import threading
from pathlib import Path

import pytest

from store.blob_errors import UploadBusy, UploadConflict
from store.blobs import LocalBlobs
from store.partial_uploads import LocalUploads, PartialUploads
from store.s3_blobs import S3Blobs
from store.s3_uploads import S3Uploads
from tests.store.uploads_contract import DATA, DIGEST, WANTED, Reopen, UploadsContract


class TestLocalUploads(UploadsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> LocalBlobs:
        return LocalBlobs(tmp_path / "blobs")

    @pytest.fixture
    def again(self, blobs: LocalBlobs) -> Reopen:
        return lambda expiry_s: LocalUploads(LocalBlobs(blobs.root), expiry_s)

    @pytest.fixture
    def uploads(self, again: Reopen) -> PartialUploads:
        return again(3600)

    def test_two_writers_at_once_are_told(self, uploads: PartialUploads) -> None:
        uploads.begin(WANTED)
        with uploads.append(WANTED.id, 0) as part:
            part.write(DATA[:10])
            with pytest.raises(UploadBusy), uploads.append(WANTED.id, 10):
                pass


class TestS3Uploads(UploadsContract):
    @pytest.fixture
    def blobs(self, s3_blobs: S3Blobs) -> S3Blobs:
        return s3_blobs

    @pytest.fixture
    def again(self, blobs: S3Blobs) -> Reopen:
        return lambda expiry_s: S3Uploads(S3Blobs(blobs.place, blobs.cache), expiry_s)

    @pytest.fixture
    def uploads(self, again: Reopen) -> PartialUploads:
        return again(3600)

    def test_of_two_writers_at_once_one_wins_and_no_byte_is_doubled(self, uploads: PartialUploads) -> None:
        uploads.begin(WANTED)
        lost: list[UploadConflict] = []

        def send() -> None:
            try:
                with uploads.append(WANTED.id, 0) as part:
                    part.write(DATA)
            except UploadConflict as error:
                lost.append(error)

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = uploads.find(WANTED.id)
        assert len(lost) <= 3
        with uploads.append(WANTED.id, found.offset) as part:
            part.write(DATA[found.offset :])
        with uploads.assemble(WANTED.id) as staging:
            assert staging.digest == DIGEST
