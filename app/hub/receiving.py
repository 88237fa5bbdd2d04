"""Files put together from packs of chunks, as Xet's clients send them, into blobs under their sha256."""

from collections.abc import Sequence

from app.hub.xet_formats import BadXet, ShardFile, Xorb, read_shard
from app.problems import Refusal
from app.shelves import Shelves
from app.uploading import claim_bytes
from store.blob_errors import DigestMismatch


def receive_shard(shelves: Shelves, upload_id: str, shard: bytes) -> int:
    """Store every file that a shard lists; how many. Its packs came before, in the same upload.

    Raises:
        Refusal: a file is too large, or cannot be put together; those before it are stored.
    """
    try:
        files = read_shard(shard)
        for file in files:
            _receive(shelves, upload_id, file)
    except BadXet as error:
        raise Refusal(422, "bad-xet", f"The upload cannot be read: {error}.") from None
    except DigestMismatch as error:
        raise Refusal(422, "digest-mismatch", str(error)) from None
    return len(files)


def _receive(shelves: Shelves, upload_id: str, file: ShardFile) -> None:
    limit = shelves.settings.max_upload_bytes
    if file.size_bytes > limit:
        detail = f"A file of {file.size_bytes} bytes was sent; at most {limit} are accepted."
        raise Refusal(413, "body-too-large", detail, limit_bytes=limit)
    if shelves.blobs.renew(file.sha256):
        return
    xorbs = _xorbs(shelves, upload_id, {term.xorb for term in file.terms})
    claim_bytes(shelves, file.sha256, file.size_bytes)
    with shelves.blobs.stage() as staging:
        for term in file.terms:
            start = staging.size
            for chunk in xorbs[term.xorb].chunks(term.first, term.end):
                staging.write(chunk)
                if staging.size - start > term.length:
                    break  # few bytes may unpack to many
            if staging.size - start != term.length:
                raise BadXet("a term has not the length that it announces")
        staging.commit(file.sha256)


def _xorbs(shelves: Shelves, upload_id: str, names: set[str]) -> dict[str, Xorb]:
    ordered: Sequence[str] = sorted(names)
    there = shelves.hub_uploads.parts(upload_id, ordered)
    missing = [name for name in ordered if name not in there]
    if missing:
        raise BadXet(f"the pack {missing[0]} was not sent")
    return {name: Xorb(shelves.blobs.path(blob.digest)) for name, blob in there.items()}
