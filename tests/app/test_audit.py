"""The audit log: every change is in it, with who, from where and what; nothing leaves it."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from tests.app.callers import calling_with, holding, new_key
from tests.app.service import Service, small_adapter


def test_every_change_is_written_down_with_its_key(keyed: Service, tmp_path: Path) -> None:
    made = new_key(keyed, {"logged": ["read", "write", "merge"]})
    with calling_with(keyed, made["key"]) as caller:
        caller.push("logged/a", small_adapter(tmp_path / "a"), tags="one")
        caller.push("logged/a", tmp_path / "a")  # the same bytes: nothing changes
        caller.http.put("/v1/adapters/logged/a/aliases/live", json={"version": 1})
        caller.http.put("/v1/adapters/logged/a/tags", json={"tags": ["two"]})
        job = caller.merge(name="logged/b", sources=[{"ref": "logged/a@1", "weight": 0.5}], method="sum")
        caller.http.delete("/v1/adapters/logged/a/aliases/live")
        caller.http.delete("/v1/adapters/logged/b/versions/1")
    found = keyed.http.get("/v1/audit", params={"key": made["id"]}).json()["items"]
    assert {(one["actor"], one["key_id"]) for one in found} == {("tester", made["id"])}
    told = [(one["action"], one["target"], one["before"], one["after"]) for one in reversed(found)]
    assert [one[:2] for one in told] == [
        ("version.publish", "logged/a@1"),
        ("alias.set", "logged/a:live"),
        ("tags.set", "logged/a"),
        ("job.enqueue", job["id"]),
        ("version.publish", "logged/b@1"),
        ("alias.delete", "logged/a:live"),
        ("version.delete", "logged/b@1"),
    ]
    assert told[1][2:] == (None, {"version": 1})
    assert told[2][2:] == ({"tags": ["one"]}, {"tags": ["two"]})
    assert told[5][2:] == ({"version": 1}, None)
    published = found[2]
    assert (published["job_id"], published["address"]) == (job["id"], None)  # by the worker, for the key
    assert {one["address"] for one in found if one["job_id"] is None} == {"127.0.0.1"}


def test_a_change_that_is_undone_is_not_written_down(keyed: Service, tmp_path: Path) -> None:
    keyed.push("undone/a", small_adapter(tmp_path / "a"))
    before = keyed.http.get("/v1/audit?limit=1").json()["items"][0]["id"]
    keyed.http.put("/v1/adapters/undone/a/aliases/live", json={"version": 7})
    keyed.http.delete("/v1/adapters/undone/a/versions/7")
    assert keyed.http.get("/v1/audit?limit=1").json()["items"][0]["id"] == before


def test_the_log_only_grows(keyed: Service) -> None:
    database = keyed.house.shelves.database
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(DatabaseError, match="only grows"), database.session() as session:
            session.execute(text(statement))


def test_filters_and_pages(keyed: Service, tmp_path: Path) -> None:
    keyed.push("paged/a", small_adapter(tmp_path / "a"))
    for name in ("x", "y", "z"):
        keyed.http.put(f"/v1/adapters/paged/a/aliases/{name}", json={"version": 1})

    def targets(**params: str | int) -> list[str]:
        items = keyed.http.get("/v1/audit", params=params).json()["items"]
        return [item["target"] for item in items]

    aliases = ["paged/a:z", "paged/a:y", "paged/a:x"]
    assert targets(namespace="paged", action="alias.set") == aliases
    assert targets(adapter="paged/a") == [*aliases, "paged/a@1"]
    assert targets(adapter="paged/b") == []
    first = keyed.http.get("/v1/audit", params={"adapter": "paged/a", "limit": 2}).json()
    rest = keyed.http.get("/v1/audit", params={"adapter": "paged/a", "cursor": first["next_cursor"]}).json()
    assert [item["target"] for item in first["items"] + rest["items"]] == [*aliases, "paged/a@1"]
    moment = first["items"][0]["at"]
    assert targets(adapter="paged/a", until=moment) == [*aliases[1:], "paged/a@1"]
    assert targets(adapter="paged/a", since=moment) == aliases[:1]
    assert keyed.http.get("/v1/audit?action=fly").status_code == 422
    assert keyed.http.get("/v1/audit?cursor=x").status_code == 422


def test_who_administers_a_namespace_sees_its_changes_alone(keyed: Service, tmp_path: Path) -> None:
    keyed.push("theirs/a", small_adapter(tmp_path / "a"))
    keyed.push("others/a", tmp_path / "a")
    with holding(keyed, {"theirs": ["admin"]}) as caller:
        found = caller.http.get("/v1/audit").json()["items"]
        assert [item["target"] for item in found] == ["theirs/a@1"]
        assert caller.http.get("/v1/audit?namespace=others").json()["items"] == []
    with holding(keyed, {"*": ["read", "write", "merge", "generate"]}) as caller:
        assert caller.http.get("/v1/audit").status_code == 403
