"""The parsers of what comes with requests, read as the service reads it: to a value, or to an answer that can be sent.

A refusal is turned into its answer by the service's own handlers, so that one that no body or header can hold is a
finding too. `longest` keeps an execution short; what is as long as the limits allow is for `tests.fuzz`.
"""

import asyncio
import base64
import io
import itertools
import json
import shutil
import struct
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import lz4.frame
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable

from app.api.files import asked_part
from app.api.hub_commits import PreuploadBody
from app.api.hub_models import AskedPaths
from app.api.hub_objects import LfsBatch, LfsCompletion
from app.api.hub_repos import CardBody, NewRepoBody, TagBody
from app.api.idempotent import BodyHash, checked_key
from app.api.resumable import digest_of
from app.error_handlers import on_http, on_known
from app.errors import ROOTS
from app.front_matter import BadFrontMatter, front_matter
from app.hub.cards import card_base, card_form
from app.hub.changes import read_commit
from app.hub.xet_formats import SHARD_TAG, BadXet, Xorb, read_shard
from app.identity.door import bearer
from app.identity.keyring import Keyring
from app.identity.rates import Rates
from app.licences import card_licence
from app.pictures import Resizing, read_picture
from app.prediction_forms import read_prediction
from app.problems import Refusal
from app.settings import Settings
from app.shelves import Shelves, open_shelves
from app.upload_forms import read_json_body, read_multipart
from tests.fuzz.parser import Parser
from tests.fuzz.seeds import BOUNDARY, CARD, COMMIT, DIGEST, JSON_BODIES, PREDICTION, UPLOAD

T = TypeVar("T")
Reading = Callable[[bytes, Path], object]

_KNOWN = (Refusal, *ROOTS)
_KEPT_BLOBS = 2000
_SMALL = 64 * 1024
_reads = itertools.count(1)
_loop = asyncio.new_event_loop()


def _answered(path: str, reading: Reading) -> Reading:
    """`reading`, whose refusals become answers at this address."""

    def read(data: bytes, folder: Path) -> None:
        try:
            reading(data, folder)
        except HTTPException as error:
            _check_answer(_run(on_http(_request(path), error)))
        except _KNOWN as error:
            _check_answer(_run(on_known(_request(path), error)))

    return read


def _check_answer(answer: Response) -> None:
    assert 400 <= answer.status_code < 500, bytes(answer.body)
    assert json.loads(answer.body)["detail"]
    for name, value in answer.raw_headers:
        assert all(32 <= byte != 127 for byte in name + value), (name, value)


def _request(path: str, content_type: bytes = b"", body: bytes = b"") -> Request:
    """A request as the server hands it over."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"spolia"), (b"content-type", content_type)],
        "server": ("spolia", 80),
        "scheme": "http",
        "app": None,
    }
    messages = iter([{"type": "http.request", "body": body[: len(body) // 2], "more_body": True}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.request", "body": body[len(body) // 2 :], "more_body": False})

    return Request(scope, receive)


def _run(waiting: Awaitable[T]) -> T:
    async def wait() -> T:
        return await waiting

    return _loop.run_until_complete(wait())


@cache
def _shelves(folder: Path) -> Shelves:
    settings = Settings(data_dir=folder / "data", require_keys=True, max_config_bytes=_SMALL, max_card_bytes=_SMALL)
    shelves = open_shelves(settings)
    shelves.database.migrate()
    return shelves


def _commit(data: bytes, folder: Path) -> None:
    shelves = _shelves(folder)
    pushed = read_commit(shelves, io.BytesIO(data))
    for text in (pushed.summary, pushed.description, pushed.parent or ""):
        text.encode()  # the database takes no other text
    if next(_reads) % _KEPT_BLOBS == 0:
        for kept in (shelves.settings.blobs_dir / "sha256").iterdir():
            shutil.rmtree(kept)


def _json_bodies(data: bytes, _: Path) -> None:
    for model in (LfsBatch, LfsCompletion, PreuploadBody, AskedPaths, NewRepoBody, TagBody, CardBody):
        _answered("/api/models/a/b", lambda data, _, model=model: _read_json(data, model))(data, _)


def _read_json(data: bytes, model: Any) -> None:
    _run(read_json_body(_request("/", b"application/json", data), model))


def _xorb(data: bytes, folder: Path) -> None:
    path = folder / "xorb"
    path.write_bytes(data)
    for chunk in Xorb(path).chunks(0, 4):
        assert len(chunk) <= 128 * 1024


def _key(data: bytes, folder: Path) -> None:
    keyring = _keyring(folder)
    token = bearer(Headers(raw=[(b"authorization", data)]))
    if token is not None:
        keyring.remembered(token)
    keyring.identify(token)


@cache
def _keyring(folder: Path) -> Keyring:
    shelves = _shelves(folder)
    return Keyring(shelves.keys, shelves.settings, Rates(None))


def _key_seeds(folder: Path) -> list[bytes]:
    _, text = _shelves(folder).keys.create("fuzz", {"*": ["read"]})
    return [f"Bearer {text}".encode(), b"Bearer spolia_abcdefghijkm_" + 43 * b"x", b"Basic a:b"]


def _picture(data: bytes, _: Path) -> None:
    pixels = read_picture(data, "Image 0", 14, 1 << 16, Resizing())
    assert pixels.shape == (3, 14, 14)


def _picture_seeds(_: Path) -> list[bytes]:
    seeds = []
    for mode in ("RGB", "RGBA", "P", "L", "I;16"):
        for kind in ("PNG", "JPEG", "WEBP"):
            if (kind == "PNG") or mode == "RGB":
                file = io.BytesIO()
                Image.new(mode, (5, 3)).save(file, kind)
                seeds.append(file.getvalue())
    return seeds


def _card(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace")
    card_form(text, 32)
    card_base(text)
    card_licence(text)
    JSONResponse(front_matter(text))


def _form(data: bytes, folder: Path) -> None:
    """The first line is the Content-Type, the rest the body."""
    kind, _, body = data.partition(b"\n")

    async def read() -> None:
        async with read_multipart(_request("/", kind, body), _shelves(folder).settings) as parts:
            JSONResponse(parts.form.model_dump())

    _run(read())


def _prediction(data: bytes, folder: Path) -> None:
    kind, _, body = data.partition(b"\n")
    asked, pictures = _run(read_prediction(_request("/", kind, body), _shelves(folder).settings))
    JSONResponse({"asked": asked.model_dump(), "labels": pictures.labels})


def _idempotency(data: bytes, _: Path) -> None:
    """The first line is the key, the second one the Content-Type, the rest the body."""
    key, _, rest = data.partition(b"\n")
    kind, _, body = rest.partition(b"\n")
    checked_key(key.decode("latin-1"))
    request = _request("/v1/merges", kind, body)
    whole, pieces = BodyHash(request), BodyHash(request)
    whole.take({"type": "http.request", "body": body, "more_body": False})
    for start in range(0, len(body), 7):
        pieces.take({"type": "http.request", "body": body[start : start + 7], "more_body": True})
    assert whole.whole
    assert not pieces.whole
    assert pieces.hex() == whole.hex()


def _range(data: bytes, _: Path) -> None:
    """What we take, the framework takes as the same part."""
    header = data.decode("latin-1")
    if part := asked_part(header, 100):
        try:
            ranges = FileResponse._parse_range_header(header, 100)
        except (MalformedRangeHeader, RangeNotSatisfiable) as error:
            raise AssertionError(header) from error
        assert ranges == [(part.start, part.stop)] or len(header) > 4000


def _xorb_seeds(_: Path) -> list[bytes]:
    plain = b"abcd" * 16
    packed = lz4.frame.compress(plain)
    chunk = struct.Struct("<B3sB3s")
    return [
        chunk.pack(0, len(body).to_bytes(3, "little"), scheme, len(plain).to_bytes(3, "little")) + body
        for scheme, body in ((0, plain), (1, packed), (2, packed))
    ]


def _shard_seeds(_: Path) -> list[bytes]:
    head = SHARD_TAG + struct.pack("<QQ", 2, 0)
    flags = 1 << 30 | 1 << 31
    file = bytes(32) + struct.pack("<IIQ", flags, 1, 0)
    term = bytes(32) + struct.pack("<IIII", 0, 64, 0, 1)
    return [head + file + term + bytes(48) + bytes(48) + b"\xff" * 48 + bytes(48)]


def _multipart(kind: bytes, body: bytes) -> bytes:
    return b"multipart/form-data; " + kind + b"boundary=" + BOUNDARY + b"\n" + body


REQUEST_PARSERS = {
    "commit": Parser(_answered("/api/models/a/b/commit/main", _commit), (), lambda _: [COMMIT]),
    "json-body": Parser(_json_bodies, (), lambda _: JSON_BODIES),
    "shard": Parser(lambda data, _: read_shard(data), BadXet, _shard_seeds),
    "xorb": Parser(_xorb, BadXet, _xorb_seeds),
    "key": Parser(_answered("/v1/jobs", _key), (), _key_seeds, longest=256),
    "picture": Parser(_answered("/v1/predictions", _picture), (), _picture_seeds),
    "card": Parser(_card, BadFrontMatter, lambda _: [CARD], longest=1024),
    "tus": Parser(
        _answered("/v1/resumable-uploads", lambda data, _: digest_of(data.decode("latin-1"))),
        (),
        lambda _: [b"filename YQ==,sha256 " + base64.b64encode(DIGEST)],
        longest=256,
    ),
    "form": Parser(
        _answered("/v1/adapters/a/b/versions", _form),
        (),
        lambda _: [_multipart(b"", UPLOAD), b"application/x-www-form-urlencoded\nconfig=%7B%7D&weights=0"],
        longest=2048,
    ),
    "prediction": Parser(
        _answered("/v1/predictions", _prediction),
        (),
        lambda _: [_multipart(b"", PREDICTION), b'application/json\n{"support": [], "queries": []}'],
        longest=2048,
    ),
    "idempotency": Parser(
        _answered("/v1/merges", _idempotency),
        (),
        lambda _: [b"8e03978e\nmultipart/form-data; boundary=abc\n--abc\r\nab\r\n--abc--", b"k\napplication/json\n{}"],
        longest=256,
    ),
    "range": Parser(_range, (), lambda _: [b"bytes=0-9", b"bytes=90-", b"bytes=-5"], longest=64),
}
