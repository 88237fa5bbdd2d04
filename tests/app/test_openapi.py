"""The service does what its OpenAPI document says: schemathesis, all checks, with a key. `benchmarks/api_fuzz.py` asks
for longer."""

import os
import subprocess
import sys
from pathlib import Path

from tests.app.callers import new_key
from tests.app.service import Service

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "benchmarks" / "api_fuzz.toml"
OTHER_WORDS = {("/readyz", "503"), ("/api/repos/create", "409"), ("/api/validate-yaml", "400")}
"""Where a protocol has its own form of saying no."""


def test_no_answer_is_other_than_described(keyed: Service, tmp_path: Path) -> None:
    key = new_key(keyed, {"*": ["admin"]})["key"]
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG),
        *("run", f"{keyed.http.base_url}/openapi.json", "--header", f"Authorization: Bearer {key}"),
        *("--checks", "all", "--phases", "examples,fuzzing", "--max-examples", "2", "--seed", "1", "--no-shrink"),
        *("--request-timeout", "120"),
        *("--generation-database", ":memory:", "--warnings", "off", "--suppress-health-check", "all"),
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_call_that_needs_a_key_says_so_and_what_it_is_told_without(keyed: Service) -> None:
    document = keyed.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            secured = path not in ("/healthz", "/readyz") and method != "options"
            secured = secured and (not path.startswith("/api/objects/") or path.endswith("/verify/{oid}"))
            assert ("security" in operation) == secured, (method, path)
            assert ("401" in operation["responses"]) == secured, (method, path)
            for status, response in operation["responses"].items():
                if status >= "400" and "content" in response and (path, status) not in OTHER_WORDS:
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_a_wrong_method_is_told_every_right_one(keyed: Service) -> None:
    answer = keyed.http.post("/v1/adapters/a/b/aliases/c")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, PUT")
