"""What to do next with what an operation made: links in the API's description, for people and for programs that follow
them.
"""

from typing import Any

Json = dict[str, Any]
Operation = tuple[str, str]

_VERSION = "/v1/adapters/{namespace}/{name}/versions/{version}"
_ALIAS = "/v1/adapters/{namespace}/{name}/aliases/{alias}"
_ADAPTER = {part: f"$response.body#/{part}" for part in ("namespace", "name")}
_MADE_VERSION = _ADAPTER | {"version": "$response.body#/version"}
_OF_VERSION: list[Operation] = [
    ("get", _VERSION),
    ("delete", _VERSION),
    ("get", f"{_VERSION}/report"),
    ("get", f"{_VERSION}/lineage"),
    ("get", f"{_VERSION}/nearest"),
    ("get", f"{_VERSION}/compatibility"),
    ("get", f"{_VERSION}/export"),
    ("post", f"{_VERSION}/verify"),
    ("post", f"{_VERSION}/revoke"),
    ("delete", f"{_VERSION}/revoke"),
    ("get", "/v1/adapters/{namespace}/{name}"),
]
_OF_JOB: list[Operation] = [
    ("get", "/v1/jobs/{job_id}"),
    ("get", "/v1/jobs/{job_id}/log"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("post", "/v1/jobs/{job_id}/cancel"),
]
_OF_KEY: list[Operation] = [("get", "/v1/keys/{key_id}"), ("delete", "/v1/keys/{key_id}")]
_OF_REPOSITORY: list[Operation] = [
    ("get", "/api/models/{namespace}/{name}"),
    ("get", "/api/models/{namespace}/{name}/refs"),
    ("post", "/api/models/{namespace}/{name}/commit/{revision}"),
]
_JOB = {"job_id": "$response.body#/id"}
_REPOSITORY = {"namespace": "$request.body#/organization", "name": "$request.body#/name", "revision": "main"}

_LINKS: list[tuple[Operation, list[Operation], dict[str, str]]] = [
    (("post", "/v1/adapters/{namespace}/{name}/versions"), _OF_VERSION, _MADE_VERSION),
    (("put", _ALIAS), [("delete", _ALIAS)], _ADAPTER | {"alias": "$request.path.alias"}),
    (("post", "/v1/keys"), _OF_KEY, {"key_id": "$response.body#/id"}),
    (("post", "/v1/merges"), _OF_JOB, _JOB),
    (("post", "/v1/online-merges"), _OF_JOB, _JOB),
    (("post", "/v1/promotions"), _OF_JOB, _JOB),
    (("post", "/v1/distillations"), _OF_JOB, _JOB),
    (("post", f"{_VERSION}/verify"), _OF_JOB, _JOB),
    (("get", "/v1/jobs"), _OF_JOB, {"job_id": "$response.body#/items/0/id"}),
    (("get", "/v1/merge-methods"), [("get", "/v1/merge-methods/{name}")], {"name": "$response.body#/items/0/name"}),
    (("get", "/v1/models"), [("get", "/v1/models/{model}")], {"model": "$response.body#/data/0/id"}),
    (("put", "/v1/uploads/{digest}"), [("head", "/v1/uploads/{digest}")], {"digest": "$request.path.digest"}),
    (("post", "/api/repos/create"), _OF_REPOSITORY, _REPOSITORY),
]


def describe_links(document: Json) -> None:
    """Add the links to the operations' answers of success."""
    paths = document["paths"]
    for (method, path), targets, values in _LINKS:
        responses = paths[path][method]["responses"]
        links = {}
        for other, where in targets:
            operation = paths[where][other]
            taken = {name: value for name, value in values.items() if "{" + name + "}" in where}
            name = operation["summary"].replace(" ", "")
            links[name] = {"operationId": operation["operationId"], "parameters": taken}
        for status in ("200", "201", "202"):
            if status in responses:
                responses[status]["links"] = links
