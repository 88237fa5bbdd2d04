"""Large files on their way to the service: in parts that go on where they stopped, or straight to its object store.

A broken connection, a service that restarts, or one that asks for patience is tried again, with the byte that comes
next, until nothing has arrived for UPLOAD_PATIENCE_S.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from app.client_http import CHUNK_BYTES, READ_TIMEOUT_S, SpoliaError, Transport, problem_error

UPLOAD_PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_PASSES = frozenset({409, 423, 429, 502, 503, 504})
_LOST = frozenset({"unreachable", "connection-broken"})
_TUS = {"Tus-Resumable": "1.0.0"}

OnOffset = Callable[[int], object]
"""Called with the bytes that were sent so far."""


def upload_in_parts(http: Transport, file: Path, digest: str, on_offset: OnOffset) -> None:
    """Send the file, whose sha256 is `digest`, by tus 1.0.0. Raises SpoliaError."""
    length = file.stat().st_size
    metadata = f"sha256 {b64encode(digest.encode()).decode()}"
    begin = _TUS | {"Upload-Length": str(length), "Upload-Metadata": metadata}
    furthest, pause_s, until = -1, _FIRST_PAUSE_S, time.monotonic() + UPLOAD_PATIENCE_S
    while True:
        try:
            # The same upload asked for again is the one that is under way: this tells where to go on.
            found = http.headers("POST", "/v1/resumable-uploads", headers=begin)
            offset = int(found["upload-offset"])
            if offset > furthest:
                furthest, pause_s, until = offset, _FIRST_PAUSE_S, time.monotonic() + UPLOAD_PATIENCE_S
            on_offset(offset)
            part = _TUS | {"Upload-Offset": str(offset), "Content-Length": str(length - offset)}
            part |= {"Content-Type": "application/offset+octet-stream"}
            if offset < length:
                http.headers("PATCH", found["location"], headers=part, content=_rest(file, offset, on_offset))
            elif http.status("HEAD", f"/v1/uploads/{digest}") != 200:
                http.headers("HEAD", found["location"], headers=_TUS)  # verifies what a crash left unverified
            return
        except SpoliaError as error:
            if not (error.status in _PASSES or error.slug in _LOST) or time.monotonic() > until:
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def upload_directly(http: Transport, file: Path, digest: str, on_offset: OnOffset) -> None:
    """Send the file to the service's object store, and let the service verify it. Raises SpoliaError."""
    body = {"size_bytes": file.stat().st_size}
    told = http.json("POST", f"/v1/uploads/{digest}/presigned", json=body)
    if told["stored"]:
        return
    headers = {"Content-Length": str(body["size_bytes"])}
    try:
        # Without the service's key: the address is signed, and belongs to somebody else.
        answer = httpx.put(told["url"], content=_rest(file, 0, on_offset), headers=headers, timeout=READ_TIMEOUT_S)
    except httpx.TransportError as error:
        raise problem_error("connection-broken", f"The object store cannot be reached: {error}.") from None
    if answer.is_error:
        raise problem_error("direct-upload-failed", f"The object store answered {answer.status_code} to the upload.")
    http.json("POST", told["complete"], json=body)


def _rest(file: Path, offset: int, on_offset: OnOffset) -> Iterator[bytes]:
    with file.open("rb") as source:
        source.seek(offset)
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
            offset += len(chunk)
            on_offset(offset)
