"""Lists, filters, aliases, tags, deleting, downloads."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.app.service import BASE, Service, problem, small_adapter


@pytest.fixture(scope="module")
def shelf(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters, one with two versions; the folder of shelf/a's second version."""
    folder = tmp_path_factory.mktemp("shelf")
    service.push("shelf/a", small_adapter(folder / "a1", rank=2), tags="red")
    service.push("shelf/a", small_adapter(folder / "a2", rank=3), tags="red")
    service.push("shelf/b", small_adapter(folder / "b", rank=2), tags="blue, red")
    only_v = {"model.layers.0.self_attn.v_proj": (192, 576)}
    service.push("shelf/c", small_adapter(folder / "c", modules=only_v, base="acme/unknown"))
    return folder / "a2"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"q": "shelf"}, ["a", "b", "c"]),
        ({"q": "shelf", "rank": 3}, ["a"]),
        ({"q": "shelf", "tag": "red"}, ["a", "b"]),
        ({"q": "shelf", "target": "q_proj"}, ["a", "b"]),
        ({"q": "shelf", "base_model": "acme/unknown"}, ["c"]),
        ({"q": "shelf blue"}, ["b"]),
        ({"q": "shelf nothing"}, []),
    ],
)
def test_filters(service: Service, shelf: Path, query: dict[str, str], names: list[str]) -> None:
    items = service.http.get("/v1/adapters", params=query).json()["items"]
    assert [item["name"] for item in items] == names


def test_pages_follow_each_other(service: Service, shelf: Path) -> None:
    seen, cursor = [], None
    while True:
        query = {"q": "shelf", "limit": 1} | ({"cursor": cursor} if cursor else {})
        page = service.http.get("/v1/adapters", params=query).json()
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["a", "b", "c"]


def test_one_adapter_shows_its_versions_newest_first(service: Service, shelf: Path) -> None:
    found = service.http.get("/v1/adapters/shelf/a").json()
    assert (found["namespace"], found["name"], found["versions"]) == ("shelf", "a", 2)
    assert [version["version"] for version in found["all_versions"]] == [2, 1]
    assert found["latest"]["ref"] == "shelf/a@2"


def test_an_alias_moves_and_goes(service: Service, shelf: Path) -> None:
    url = "/v1/adapters/shelf/a/aliases/production"
    assert service.http.put(url, json={"version": 1}).json()["ref"] == "shelf/a@1"
    versions = "/v1/adapters/shelf/a/versions"
    assert service.http.get(f"{versions}/production").json()["version"] == 1
    assert service.http.put(url, json={"version": 2}).json()["aliases"] == ["production"]
    assert service.http.get(f"{versions}/production").json()["version"] == 2
    assert service.http.get(f"{versions}/latest").json()["version"] == 2
    refused = problem(service.http.delete(f"{versions}/2"), 409, "version-in-use")
    assert "production" in refused["detail"]
    assert service.http.delete(url).status_code == 204
    gone = problem(service.http.get(f"{versions}/production"), 404, "unknown-reference")
    assert "shelf/a@2" in gone["near"]
    problem(service.http.put(f"{url}x", json={"version": 9}), 404, "unknown-reference")
    problem(service.http.put("/v1/adapters/shelf/a/aliases/7", json={"version": 1}), 422, "invalid-name")
    problem(service.http.put(url, json={"version": 0}), 422, "invalid-request")


def test_tags_are_replaced(service: Service, shelf: Path) -> None:
    found = service.http.put("/v1/adapters/shelf/c/tags", json={"tags": ["x", "y z"]}).json()
    assert found["tags"] == ["x", "y z"]
    assert service.http.put("/v1/adapters/shelf/c/tags", json={"tags": []}).json()["tags"] == []


def test_deleting_a_version(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, rank=7)  # a config that no other version shares
    service.push("shelf/gone", folder)
    blobs = service.stored()["blobs"]
    for file in service.house.registry.resolve("shelf/gone@1").files:
        os.utime(service.house.shelves.blobs.path(file.digest), (0, 0))  # younger files are left to garbage collection
    assert service.http.delete("/v1/adapters/shelf/gone/versions/1").status_code == 204
    problem(service.http.get("/v1/adapters/shelf/gone/versions/1"), 404, "unknown-reference")
    assert len(service.stored()["blobs"]) == len(blobs) - 2
    assert service.push("shelf/gone", folder)["version"] == 2


def test_a_source_is_kept_until_its_merge_is_gone_unless_forced(service: Service, tmp_path: Path) -> None:
    service.push("shelf/parent", small_adapter(tmp_path))
    child = service.merge(name="shelf/child", sources=["shelf/parent"])["result"]["ref"]
    refused = problem(service.http.delete("/v1/adapters/shelf/parent/versions/1"), 409, "version-in-use")
    assert child in refused["detail"]
    assert service.http.delete("/v1/adapters/shelf/parent/versions/1?force=true").status_code == 204
    kept = service.http.get("/v1/adapters/shelf/child/versions/1").json()
    assert kept["sources"] == [{"ref": "shelf/parent@1", "weight": 1.0}]


def test_downloads_know_etag_and_range(service: Service, shelf: Path) -> None:
    url = "/v1/adapters/shelf/a/versions/2/files/adapter_model.safetensors"
    original = (shelf / "adapter_model.safetensors").read_bytes()
    whole = service.http.get(url)
    assert whole.content == original
    etag = whole.headers["etag"]
    assert etag == f'"sha256:{hashlib.sha256(original).hexdigest()}"'
    assert service.http.get(url, headers={"if-none-match": etag}).status_code == 304
    assert service.http.get(url, headers={"if-none-match": '"x", ' + etag}).status_code == 304
    assert service.http.get(url, headers={"if-none-match": '"other"'}).status_code == 200
    assert service.http.head(url).headers["content-length"] == str(len(original))
    for header, expected in (
        ("bytes=0-99", original[:100]),
        ("bytes=100-", original[100:]),
        ("bytes=-7", original[-7:]),
    ):
        part = service.http.get(url, headers={"range": header})
        assert part.status_code == 206
        assert part.content == expected
    part = service.http.get(url, headers={"range": "bytes=5-9", "if-range": etag})
    assert (part.status_code, part.content) == (206, original[5:10])
    for header in ("bytes=5-9", f"bytes={len(original)}-"):  # of a file that was longer, perhaps
        changed = service.http.get(url, headers={"range": header, "if-range": '"other"'})
        assert (changed.status_code, changed.content) == (200, original)
    for header in ("Bytes=5-9", f"bytes={'0' * 30}5-9"):
        part = service.http.get(url, headers={"range": header})
        assert (part.status_code, part.content) == (206, original[5:10])
    beyond = service.http.get(url, headers={"range": f"bytes=5-{'9' * 5000}"})
    assert (beyond.status_code, beyond.content) == (206, original[5:])
    assert beyond.headers["content-range"] == f"bytes 5-{len(original) - 1}/{len(original)}"
    for header in ("lines=1-2", "lines", "bytes=0-1,5-6"):  # RFC 9110, 14.2: a unit that is not known is ignored
        ignored = service.http.get(url, headers={"range": header})
        assert (ignored.status_code, ignored.content) == (200, original)
    told = service.http.head(url, headers={"range": f"bytes={len(original)}-"})
    assert (told.status_code, told.headers["content-length"]) == (200, str(len(original))), "ranges are for GET"
    for header in (f"bytes={len(original)}-", "bytes=9-5", "bytes=a-b", "bytes", "bytes=-0", f"bytes={'9' * 5000}-"):
        refused = service.http.get(url, headers={"range": header})
        problem(refused, 416, "range-not-satisfiable")
        assert refused.headers["content-range"] == f"bytes */{len(original)}"


def test_what_does_not_exist_is_named(service: Service, shelf: Path) -> None:
    assert "shelf/a" in problem(service.http.get("/v1/adapters/shelf/aa"), 404, "unknown-reference")["near"]
    url = "/v1/adapters/shelf/a/versions"
    assert problem(service.http.get(f"{url}/7"), 404, "unknown-reference")["near"][0] == "shelf/a@2"
    missing = problem(service.http.get(f"{url}/1/files/model.bin"), 404, "unknown-file")
    assert missing["known"] == ["adapter_config.json", "adapter_model.safetensors"]
    problem(service.http.get(f"{url}/1/report"), 404, "no-report")
    problem(service.http.get("/v1/adapters?rnk=2"), 422, "invalid-request")
    problem(service.http.get("/v1/adapters?limit=0"), 422, "invalid-request")
    problem(service.http.get("/v1/adapters?cursor=forged"), 422, "bad-cursor")
    problem(service.http.delete(f"{url}/one"), 422, "invalid-request")
    assert service.http.get("/v1/models").json()["data"][0]["id"] == BASE


@pytest.mark.parametrize("when", ["found", "read"])
@pytest.mark.parametrize(
    "where", ["/v1/adapters/shelf/racing/versions/{number}/files/{file}", "/shelf/racing/resolve/v{number}/{file}"]
)
def test_a_download_of_what_is_deleted_meanwhile_is_a_404(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, when: str
) -> None:
    """Before the file is found and between that and its opening: the version is deleted there, by another client."""
    version = service.push("shelf/racing", small_adapter(tmp_path))
    service.push("shelf/racing", small_adapter(tmp_path / "stays"))
    blobs, registry = service.house.shelves.blobs, service.house.registry
    path_of = blobs.path

    def racing(digest: str) -> Path:
        path = path_of(digest)
        monkeypatch.undo()
        registry.delete_version("shelf", "racing", version["version"])
        registry.collect_garbage(0)
        return path if when == "read" else path_of(digest)

    url = where.format(number=version["version"], file="adapter_model.safetensors")
    monkeypatch.setattr(blobs, "path", racing)
    problem(service.http.get(url), 404, "unknown-reference" if url.startswith("/v1") else "unknown-revision")


def test_a_download_goes_on_to_its_end_though_its_version_is_deleted(service: Service, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path, rank=256)
    number = service.push("shelf/large", folder)["version"]
    with service.http.stream(
        "GET", f"/v1/adapters/shelf/large/versions/{number}/files/adapter_model.safetensors"
    ) as part:
        pieces = part.iter_raw(1 << 16)
        begun = next(pieces)
        service.house.registry.delete_version("shelf", "large", number)
        service.house.registry.collect_garbage(0)
        assert begun + b"".join(pieces) == (folder / "adapter_model.safetensors").read_bytes()
