"""Large files on their way: Xet's packs and Git LFS' objects, whole, in parts, broken, not yet named by a commit."""

import hashlib
import json
import random
import struct
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd
from hypothesis import given
from hypothesis import strategies as st

from app.hub.xet_formats import MAX_CHUNKS, SHARD_TAG, BadXet, Xorb, read_shard, ungrouped, unpack
from tests.app.hub_client import Hub
from tests.app.service import Service, problem

NOTES = "notes.txt"
CONTENTS = {
    "text": b"the same words again and again, " * 9000,
    "numbers": (np.arange(60_000, dtype=np.float32) * 0.001).tobytes() + b"abc",
    "noise": random.Random(1).randbytes(200_001),
    "repeats": random.Random(2).randbytes(150_000) * 3,
}


@pytest.mark.parametrize("content", CONTENTS)
def test_any_bytes_arrive_by_xet(hub: Hub, service: Service, content: str) -> None:
    data = CONTENTS[content]
    hub.api.create_repo("transfers/xet", exist_ok=True)
    with service.house.shelves.database.reading() as session:
        before = session.connection().exec_driver_sql("select count(*) from hub_parts").scalar()
    hub.api.create_commit("transfers/xet", [CommitOperationAdd(f"{content}.txt", data)], commit_message="m")
    assert hub.download("transfers/xet", f"{content}.txt").read_bytes() == data
    with service.house.shelves.database.reading() as session:
        assert session.connection().exec_driver_sql("select count(*) from hub_parts").scalar() > before


def test_parts_of_an_upload_are_kept_until_it_is_whole_and_no_longer(lfs: Hub, service: Service) -> None:
    data = random.Random(3).randbytes(40_000)
    oid = hashlib.sha256(data).hexdigest()
    lfs.api.create_repo("transfers/parts")
    batch = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [{"oid": oid, "size": len(data)}]}
    answer = service.http.post("/transfers/parts.git/info/lfs/objects/batch", json=batch).json()
    upload = answer["objects"][0]["actions"]["upload"]
    size = int(upload["header"]["chunk_size"])
    parts = []
    for number in (3, 1, 2):  # in any order
        piece = data[(number - 1) * size : number * size]
        etag = service.http.put(upload["header"][str(number)], content=piece).headers["etag"]
        parts.append({"partNumber": number, "etag": etag})
        assert service.house.shelves.blobs.exists(etag.strip('"'))
    service.house.registry.collect_garbage(0)  # somebody cleans up meanwhile
    short = service.http.post(upload["href"], json={"oid": oid, "parts": parts[:2]})
    assert problem(short, 422, "digest-mismatch")["expected"] == oid
    problem(service.http.post(upload["href"], json={"oid": oid, "parts": parts * 100}), 422, "repeated-part")
    assert service.http.post(upload["href"], json={"oid": oid, "parts": parts}).status_code == 200
    verify = answer["objects"][0]["actions"]["verify"]["href"]
    assert service.http.post(verify, json={"oid": oid, "size": len(data)}).status_code == 200
    assert service.house.shelves.blobs.path(oid).read_bytes() == data
    assert not any(service.house.shelves.blobs.exists(part["etag"].strip('"')) for part in parts)
    again = service.http.post("/transfers/parts.git/info/lfs/objects/batch", json=batch).json()
    assert "actions" not in again["objects"][0]  # it is here already


def test_a_draft_keeps_its_files_from_garbage_collection(hub: Hub, service: Service) -> None:
    hub.api.create_repo("transfers/draft")
    data = random.Random(4).randbytes(5000)
    hub.api.create_commit("transfers/draft", [CommitOperationAdd(NOTES, data)], commit_message="m")
    service.house.registry.collect_garbage(0)
    assert hub.download("transfers/draft", NOTES).read_bytes() == data


def test_other_bytes_than_announced_are_not_kept(lfs: Hub, service: Service) -> None:
    lfs.api.create_repo("transfers/lies")
    objects = [{"oid": "ab" * 32, "size": 3}, {"oid": "cd" * 32, "size": 1 << 40}]
    batch = {"operation": "upload", "transfers": ["basic"], "objects": objects}
    small, large = service.http.post("/transfers/lies.git/info/lfs/objects/batch", json=batch).json()["objects"]
    assert large["error"]["code"] == 413
    address = small["actions"]["upload"]["href"]
    problem(service.http.put(address, content=b"lie"), 422, "digest-mismatch")
    problem(service.http.post(small["actions"]["verify"]["href"], json=objects[0]), 422, "missing-blob")
    line = {"key": "lfsFile", "value": {"path": NOTES, "algo": "sha256", "oid": "ab" * 32, "size": 3}}
    commit = service.http.post("/api/models/transfers/lies/commit/main", content=json.dumps(line))
    problem(commit, 422, "missing-blob")
    problem(service.http.put(address.replace(address[-8:], "00000000"), content=b"x"), 404, "unknown-transfer")
    token = service.http.get("/api/models/transfers/lies/xet-write-token/main").json()
    problem(service.http.post(f"{token['casUrl']}/v1/shards", content=b"nonsense"), 422, "bad-xet")
    missing = shard([("ab" * 32, [("cd" * 32, 3, 0, 1)])])
    detail = problem(service.http.post(f"{token['casUrl']}/v1/shards", content=missing), 422, "bad-xet")["detail"]
    assert f"the pack {'cd' * 32} was not sent" in detail
    xorb = f"{token['casUrl']}/v1/xorbs/default/{'cd' * 32}"
    assert service.http.post(xorb, content=packed(b"lie")).json() == {"was_inserted": True}
    problem(service.http.post(f"{token['casUrl']}/v1/shards", content=missing), 422, "digest-mismatch")
    short = shard([("ab" * 32, [("cd" * 32, 2, 0, 1)])])  # less than what the chunks unpack to
    detail = problem(service.http.post(f"{token['casUrl']}/v1/shards", content=short), 422, "bad-xet")["detail"]
    assert "a term has not the length that it announces" in detail
    problem(
        service.http.post(f"{hub_address(token)}/xet/{'0' * 32}/v1/shards", content=missing), 404, "unknown-transfer"
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"{"], "a line of it is not JSON"),
        ([b"[]"], "not an object with key and value"),
        ([b'{"key": ["file"], "value": {}}'], "an operation has no key that is text"),
        ([b'{"key": "header", "value": {"summary": ["s"]}}'], "its summary is not text"),
        ([b'{"key": "file", "value": {"path": "a.txt", "content": "\\ud800"}}'], "is not text"),
        ([b'{"key": "rename", "value": {}}'], "'rename' is none of header, file, lfsFile"),
        ([b'{"key": "file", "value": {"path": "a.txt", "content": "?", "encoding": "base64"}}'], "is not base64"),
        ([b'{"key": "file", "value": {"content": ""}}'], "an operation has no path"),
        ([b'{"key": "lfsFile", "value": {"path": "a.txt", "oid": "x"}}'], "is not named by a sha256"),
    ],
)
def test_a_commit_that_cannot_be_read_is_refused(hub: Hub, service: Service, lines: list[bytes], said: str) -> None:
    hub.api.create_repo("transfers/lines", exist_ok=True)
    answer = service.http.post("/api/models/transfers/lines/commit/main", content=b"\n".join(lines))
    document = problem(answer, 422, "invalid-request")
    assert said in document["detail"]
    assert document["error"] == answer.headers["x-error-message"] == document["detail"]


def test_a_commit_says_what_any_database_and_header_can_hold(hub: Hub, service: Service) -> None:
    hub.api.create_repo("transfers/words", exist_ok=True)
    url = "/api/models/transfers/words/commit/main"
    lines = [
        rb'{"key": "header", "value": {"summary": "\ud800 a\u0000b", "description": "\udfff"}}',
        rb'{"key": "file", "value": {"path": "notes.txt", "content": "a"}}',
    ]
    assert service.http.post(url, content=b"\n".join(lines)).status_code == 200
    assert service.http.get("/api/models/transfers/words/commits/main").json()[0]["title"] == "? ab"
    answer = service.http.post(url, content=rb'{"key": "deletedFolder", "value": {"path": "\ud800\r\u007f"}}')
    problem(answer, 404, "unknown-file")
    assert answer.headers["x-error-message"].isprintable()


def hub_address(token: dict[str, str]) -> str:
    return token["casUrl"].partition("/xet/")[0]


def raw_hash(text: str) -> bytes:
    return b"".join(bytes.fromhex(text[start : start + 16])[::-1] for start in range(0, 64, 16))


def shard(files: list[tuple[str, list[tuple[str, int, int, int]]]]) -> bytes:
    """A shard as the protocol's specification lays it out, with the sha256 of each file."""
    data = SHARD_TAG + struct.pack("<QQ", 2, 0)
    for sha256, terms in files:
        data += bytes(32) + struct.pack("<IIQ", 1 << 30, len(terms), 0)
        for xorb, length, first, end in terms:
            data += raw_hash(xorb) + struct.pack("<IIII", 0, length, first, end)
        data += raw_hash(sha256) + bytes(16)
    return data + b"\xff" * 32 + bytes(16)


def packed(*chunks: bytes, scheme: int = 0) -> bytes:
    """A xorb of these chunks."""
    parts = [chunk if scheme == 0 else lz4.frame.compress(chunk) for chunk in chunks]
    return b"".join(
        bytes([0]) + len(part).to_bytes(3, "little") + bytes([scheme]) + len(chunk).to_bytes(3, "little") + part
        for part, chunk in zip(parts, chunks, strict=True)
    )


@given(st.binary(max_size=300))
def test_grouping_every_fourth_byte_is_undone(data: bytes) -> None:
    grouped = b"".join(data[lane::4] for lane in range(4))
    assert ungrouped(grouped) == data
    assert unpack(lz4.frame.compress(grouped), 2, len(data)) == data


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5), st.integers(0, 1), st.data())
def test_chunks_are_found_by_number(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], scheme: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("xorb") / "xorb"
    path.write_bytes(packed(*chunks, scheme=scheme) + b"XETBLOB index")
    first = data.draw(st.integers(0, len(chunks) - 1))
    end = data.draw(st.integers(first + 1, len(chunks)))
    assert list(Xorb(path).chunks(first, end)) == chunks[first:end]
    with pytest.raises(BadXet, match=f"asks for chunk {len(chunks)} of a pack of {len(chunks)}"):
        list(Xorb(path).chunks(0, len(chunks) + 1))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_broken_shards_are_refused_and_never_read_beyond(noise: bytes, cut: int) -> None:
    whole = shard([("ab" * 32, [("cd" * 32, 5, 0, 1), ("ef" * 32, 7, 2, 9)])])
    assert [file.size_bytes for file in read_shard(whole)] == [12]
    assert read_shard(whole)[0].sha256 == "ab" * 32
    for data in (whole[:cut], SHARD_TAG + struct.pack("<QQ", 2, 0) + noise, noise):
        try:
            read_shard(data)
        except BadXet:
            continue


def test_a_chunk_that_grows_without_end_is_not_unpacked(tmp_path: Path) -> None:
    bomb = lz4.frame.compress(bytes(50_000_000))
    with pytest.raises(BadXet, match="a chunk has 101 bytes, not 100"):
        unpack(bomb, 1, 100)
    path = tmp_path / "xorb"
    path.write_bytes(bytes([0]) + b"\x01\x00\x00" + bytes([1]) + b"\xff\xff\xff" + b"x")
    with pytest.raises(BadXet, match="longer than its pack, or than chunks may be"):
        Xorb(path)
    path.write_bytes(bytes(8 * (MAX_CHUNKS + 1)))  # empty chunks, which cost eight bytes each
    with pytest.raises(BadXet, match=f"a pack has more than {MAX_CHUNKS} chunks"):
        Xorb(path)
