"""Well-formed bodies, for the fuzzer to begin with."""

import json

DIGEST = b"0a" * 32
WORDS = [
    rb"\ud800", rb"\u0000", "\u00e9".encode(), b"\0", b"\r\n", b"[]", b"{}", b"null", b"NaN", b"1e999",
    b"9" * 20, b"-1", b'"key"', b'"value"', b"[" * 40, b"!!int", b"!!float", b"!!timestamp", b"!!binary",
    b"!!omap", b"!!set", b"&a", b"*a", b"<<:", b".inf", rb'"\U00110000"', rb'"\ud800"', b"charset=utf-7",
    b"charset=idna", b"charset=undefined", b"application/x-www-form-urlencoded", b"application/json",
    b"multipart/form-data", b"filename*=utf-8''a", b"boundary=", b"--abc",
    b"Content-Disposition: form-data; name=", b"Content-Transfer-Encoding: base64", b"eXIf", b"iCCP", b"acTL",
    b"VP8X", b"Exif", b"HFRepoMetaData\0", b"bytes=", b"Bearer ", b"spolia_",
]  # fmt: skip
"""What mutations would not come upon."""

BOUNDARY = b"abc"

COMMIT = b"""{"key": "header", "value": {"summary": "s", "description": "d", "parentCommit": "0a0a"}}
{"key": "file", "value": {"path": "README.md", "content": "aGVsbG8=", "encoding": "base64"}}
{"key": "file", "value": {"path": "notes.txt", "content": "hello"}}
{"key": "lfsFile", "value": {"path": "adapter_model.safetensors", "algo": "sha256", "oid": "%s", "size": 1}}
{"key": "deletedFile", "value": {"path": "old.json"}}
{"key": "deletedFolder", "value": {"path": "/"}}
""" % (b"0a" * 32)

CARD = b"""---
license: other
license_name: [mit, apache-2.0]
base_model:
  - team/base
tags: [a, "b", 3, 2024-01-01]
scores: {accuracy: 1.5e3, at: 12:30:45, raw: !!binary aGVsbG8=, whole: !!int "0x1f", yes: !!bool "yes"}
"\\u00e9": !!timestamp "2024-01-01 10:00:00Z"
---
# Title
"""

JSON_BODIES = [
    json.dumps(body).encode()
    for body in (
        {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": "0a" * 32, "size": 5}]},
        {"oid": "0a" * 32, "parts": [{"partNumber": 1, "etag": '"0a"'}]},
        {"files": [{"path": "README.md", "size": 5, "sample": "aGk="}]},
        {"paths": ["README.md"], "expand": True},
        {"name": "spam", "organization": "team", "type": "model", "private": True},
        {"tag": "production", "message": None},
        {"content": "---\nlicense: mit\n---\n"},
    )
]

UPLOAD = b"""--abc\r
Content-Disposition: form-data; name="config"; filename="a.json"\r
Content-Type: application/json\r
\r
{}\r
--abc\r
Content-Disposition: form-data; name="weights"; filename="a.safetensors"\r
\r
00000000\r
--abc\r
Content-Disposition: form-data; name="tags"\r
\r
a,b\r
--abc--\r
"""

PREDICTION = b"""--abc\r
Content-Disposition: form-data; name="support"; filename="cats/1.png"\r
\r
0000\r
--abc\r
Content-Disposition: form-data; name="adapters"\r
\r
[{"ref": "a/b", "weight": 0.5}]\r
--abc\r
Content-Disposition: form-data; name="temperature"\r
\r
0.5\r
--abc--\r
"""
