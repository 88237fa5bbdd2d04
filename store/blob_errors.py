"""What can go wrong with files, at rest and on their way, each with its fields and one sentence.

StoreError
├── MissingBlob             bytes that were never stored, or were removed since
│   └── LostBlob            a version names bytes that are not there: the store's fault, not the asker's
├── DigestMismatch          the bytes are not those that were announced
├── DamagedBlob             stored bytes that do not have their digest (any more)
├── UnknownUpload           no upload in parts has this id (any more)
├── UploadConflict          a part of an upload that does not begin where the last one ended
├── UploadBusy              a part of the same upload is still being received
├── UploadTooLong           more bytes than the upload was announced with
├── UnknownTransfer         an upload of the Hub's protocol that was never opened, or is over
├── ObjectStoreUnavailable  the object store does not answer, or not as it should
└── ObjectStoreDenied       the object store refuses our keys, or our clock
"""

from store.errors import StoreError, shown


class MissingBlob(StoreError):
    """Bytes that the blob store does not hold."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"No stored file has the digest {shown('sha256:' + digest)}: upload it (again) first.")


class LostBlob(MissingBlob):
    """A file of a version that is in the registry is not in the blob store."""

    def __init__(self, digest: str, reference: str) -> None:
        super().__init__(digest)
        self.reference = reference
        self.args = (
            f"{reference} has lost a file: {shown('sha256:' + digest)} is in the registry, and not in the file store. "
            "Whoever runs the service finds all such files with `spolia fsck`; pushing the same files again, or a "
            "backup, brings them back.",
        )


class DigestMismatch(StoreError):
    """The bytes that came are not those that were announced. Both digests are 64 hex digits."""

    def __init__(self, expected: str, actual: str, size_bytes: int) -> None:
        self.expected = expected
        self.actual = actual
        self.size_bytes = size_bytes
        super().__init__(
            f"The {size_bytes} bytes received have the digest sha256:{actual}, not the announced "
            f"sha256:{expected}: nothing was stored."
        )


class DamagedBlob(StoreError):
    """What is stored under ``digest`` has another sha256, ``actual``; read twice, it was wrong twice."""

    def __init__(self, digest: str, actual: str) -> None:
        self.digest = digest
        self.actual = actual
        super().__init__(
            f"The stored file {shown('sha256:' + digest)} is damaged: its bytes have the digest sha256:{actual}. "
            "Upload the right bytes again, or restore a backup."
        )


class UnknownUpload(StoreError):
    """No upload in parts has this id: it never began, was abandoned, or has expired."""

    def __init__(self, upload_id: str) -> None:
        self.upload_id = upload_id
        super().__init__(f"There is no upload with id {shown(upload_id)} (any more): begin a new one.")


class UploadConflict(StoreError):
    """A part begins at ``given``, but ``offset`` bytes are here."""

    def __init__(self, given: int, offset: int) -> None:
        self.given = given
        self.offset = offset
        super().__init__(f"The part begins at byte {given}, but {offset} bytes are here: go on with byte {offset}.")


class UploadBusy(StoreError):
    """Another request is writing to the same upload."""

    def __init__(self, upload_id: str) -> None:
        self.upload_id = upload_id
        super().__init__("Another part of this upload is still being received: try again in a moment.")


class UploadTooLong(StoreError):
    """A part reaches beyond the announced length of the upload."""

    def __init__(self, length: int) -> None:
        self.length = length
        super().__init__(f"The part reaches beyond the {length} bytes that the upload was announced with.")


class UnknownTransfer(StoreError):
    """The address of an upload that is not (or no longer) expected; its id is a secret, and not repeated."""

    def __init__(self) -> None:
        super().__init__("This upload is not expected, or was finished or given up a day ago: begin it again.")


class ObjectStoreUnavailable(StoreError):
    """The object store at ``place`` did not answer in time, broke off, or answered with an error of its own."""

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"The object store does not answer as it should ({reason}): nothing was stored; try again.")


class ObjectStoreDenied(StoreError):
    """The object store at ``place`` refused the keys that this service has, or signatures by a clock that is wrong."""

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(
            "The object store refuses this service's keys or, if they are right, its clock: its operator must set them."
        )
