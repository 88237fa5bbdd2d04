"""What uploads in parts must do wherever they are kept. A backend's tests give ``blobs``, ``uploads`` and ``again``."""

import hashlib
import os
from collections.abc import Callable

import pytest

from store.blob_errors import DigestMismatch, UnknownUpload, UploadConflict, UploadTooLong
from store.blobs import Blobs
from store.partial_uploads import Announced, PartialUploads

DATA = os.urandom(1 << 20) * 9 + b"the end"
DIGEST = hashlib.sha256(DATA).hexdigest()
WANTED = Announced(DIGEST, len(DATA), "somebody")
Reopen = Callable[[float], PartialUploads]


class UploadsContract:
    def test_parts_become_the_blob(self, blobs: Blobs, uploads: PartialUploads) -> None:
        assert uploads.begin(WANTED).offset == 0
        for begin in range(0, len(DATA), 4_000_000):
            with uploads.append(WANTED.id, begin) as part:
                part.write(DATA[begin : begin + 1_000_000])
                part.write(DATA[begin + 1_000_000 : begin + 4_000_000])
        found = uploads.find(WANTED.id)
        assert (found.offset, found.complete, found.announced) == (len(DATA), True, WANTED)
        with uploads.assemble(WANTED.id) as staging:
            assert staging.commit(DIGEST) == DIGEST
        uploads.finish(WANTED.id)
        assert b"".join(blobs.read(DIGEST)) == DATA
        assert uploads.begin(WANTED).complete
        with pytest.raises(UploadConflict), uploads.append(WANTED.id, len(DATA)):
            pass

    def test_what_came_before_the_connection_broke_is_kept(self, uploads: PartialUploads, again: Reopen) -> None:
        uploads.begin(WANTED)

        def break_off() -> None:
            with uploads.append(WANTED.id, 0) as part:
                part.write(DATA[:123_456])
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            break_off()
        restarted = again(3600)
        assert restarted.begin(WANTED).offset == 123_456
        with restarted.append(WANTED.id, 123_456) as part:
            part.write(DATA[123_456:])
        with restarted.assemble(WANTED.id) as staging:
            assert staging.digest == DIGEST

    def test_a_part_begins_where_the_last_one_ended(self, uploads: PartialUploads) -> None:
        uploads.begin(WANTED)
        with uploads.append(WANTED.id, 0) as part:
            part.write(DATA[:100])
        for wrong in (0, 99, 101):
            with pytest.raises(UploadConflict, match="go on with byte 100") as caught, uploads.append(WANTED.id, wrong):
                pass
            assert caught.value.offset == 100

    def test_no_more_than_was_announced(self, uploads: PartialUploads) -> None:
        short = Announced(DIGEST, 10)
        uploads.begin(short)
        with pytest.raises(UploadTooLong, match="10 bytes"), uploads.append(short.id, 0) as part:
            part.write(bytes(11))

    def test_other_bytes_are_no_blob(self, blobs: Blobs, uploads: PartialUploads) -> None:
        wanted = Announced(DIGEST, 3)
        uploads.begin(wanted)
        with uploads.append(wanted.id, 0) as part:
            part.write(b"abc")
        with pytest.raises(DigestMismatch), uploads.assemble(wanted.id) as staging:
            staging.commit(DIGEST)
        assert not blobs.exists(DIGEST)
        uploads.drop(wanted.id)
        with pytest.raises(UnknownUpload):
            uploads.find(wanted.id)

    def test_owners_do_not_meet(self, uploads: PartialUploads) -> None:
        other = Announced(DIGEST, len(DATA), "somebody else")
        uploads.begin(WANTED)
        with uploads.append(WANTED.id, 0) as part:
            part.write(b"x")
        assert other.id != WANTED.id
        assert uploads.begin(other).offset == 0

    def test_what_nobody_goes_on_with_expires(self, uploads: PartialUploads, again: Reopen) -> None:
        uploads.begin(WANTED)
        with uploads.append(WANTED.id, 0) as part:
            part.write(DATA[:100])
        assert uploads.sweep() == 0
        later = again(-2.0)
        with pytest.raises(UnknownUpload):
            later.find(WANTED.id)
        assert later.sweep(dry_run=True) == 1
        assert later.sweep() == 1
        assert later.sweep() == 0
        assert uploads.begin(WANTED).offset == 0

    @pytest.mark.parametrize("upload_id", ["", "../../etc/passwd", "A" * 32, "ab" * 16 + "\n", "ab" * 16])
    def test_an_id_is_never_taken_for_a_path(self, uploads: PartialUploads, upload_id: str) -> None:
        with pytest.raises(UnknownUpload):
            uploads.find(upload_id)
        with pytest.raises(UnknownUpload), uploads.append(upload_id, 0):
            pass
