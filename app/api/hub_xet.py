"""Uploads by the Xet protocol, which clients with hf_xet use for every large file: packs of chunks, then a shard.

Each upload has an address of its own, which such a client takes for a store that it has not met: so it sends all that a
file needs, and nothing has to be kept of earlier uploads. There is no reading side; downloads are plain.
"""

import time
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from app.api.access import HouseDep, needs
from app.hub.receiving import receive_shard
from app.hub.revisions import repository
from app.problems import Refusal
from app.receiving import receive
from app.uploading import claim_bytes
from store.hub_uploads import LIFETIME
from store.records import BlobRef

router = APIRouter(tags=["hub"])

Hash = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_NO_KEY = "none"


@router.get("/api/models/{namespace}/{name}/xet-write-token/{revision:path}", dependencies=[needs("write")])
def xet_write_token(house: HouseDep, request: Request, namespace: str, name: str, revision: str) -> JSONResponse:
    """Where the packs of this upload go. They are sent with the caller's own key, which the answer repeats."""
    repository(house, namespace, name)
    house.registry.release(house.shelves.hub_uploads.sweep())
    upload = house.shelves.hub_uploads.open()
    base = str(request.base_url).rstrip("/")
    key = request.headers.get("authorization", "").removeprefix("Bearer ").strip() or _NO_KEY
    expires = int(time.time() + LIFETIME.total_seconds())
    body = {"accessToken": key, "exp": expires, "casUrl": f"{base}/xet/{upload.id}"}
    said = {
        "x-xet-cas-url": body["casUrl"],
        "x-xet-access-token": key,
        "x-xet-token-expiration": str(expires),
        "cache-control": "no-store",
    }
    return JSONResponse(body, headers={name: str(value) for name, value in said.items()})


@router.get("/xet/{upload_id}/v1/chunks/{prefix}/{chunk}", dependencies=[needs("write")])
def find_chunk(upload_id: str, prefix: str, chunk: Hash) -> Response:
    """No chunk is known from other uploads."""
    raise Refusal(404, "unknown-chunk", "Chunks of other uploads are not offered here.")


@router.post("/xet/{upload_id}/v1/xorbs/{prefix}/{xorb}", dependencies=[needs("write")])
async def put_xorb(house: HouseDep, request: Request, upload_id: str, prefix: str, xorb: Hash) -> dict[str, Any]:
    """A pack of chunks."""
    known = await to_thread.run_sync(house.shelves.hub_uploads.parts, upload_id, [xorb])
    with house.shelves.blobs.stage() as staging:
        await receive(request.stream(), staging.write)
        size_bytes = staging.size
        await to_thread.run_sync(claim_bytes, house.shelves, staging.digest, size_bytes)
        digest = await to_thread.run_sync(staging.commit)
    await to_thread.run_sync(house.shelves.hub_uploads.keep, upload_id, xorb, BlobRef(digest, size_bytes))
    return {"was_inserted": xorb not in known}


@router.post("/xet/{upload_id}/v1/shards", dependencies=[needs("write")])
async def put_shard(house: HouseDep, request: Request, upload_id: str) -> dict[str, Any]:
    """The list of files that the packs hold: each becomes a stored file under its sha256."""
    await to_thread.run_sync(house.shelves.hub_uploads.get, upload_id)
    shard = await request.body()
    await to_thread.run_sync(receive_shard, house.shelves, upload_id, shard)
    return {"result": 1}
