"""After the storm: everything that was acknowledged is there, whole, and nothing is half there."""

import hashlib
import time
from collections import Counter

import httpx

from benchmarks.reliability.ledger import Ledger

FINAL = ("succeeded", "failed", "cancelled")


def losses(url: str, ledger: Ledger, jobs_within_s: float = 300) -> list[str]:
    """What is wrong, one sentence each; empty when nothing is."""
    with httpx.Client(base_url=url, timeout=60) as http:
        return [*_jobs(http, ledger, jobs_within_s), *_versions(http, ledger), *_aliases(http, ledger), *_names(http)]


def attempts(url: str, ledger: Ledger) -> Counter[int]:
    """How many of the accepted jobs took how many attempts."""
    with httpx.Client(base_url=url, timeout=60) as http:
        return Counter(int(http.get(f"/v1/jobs/{job_id}").json()["attempts"]) for job_id in ledger.merges)


def wait_for_jobs(url: str, ledger: Ledger, within_s: float) -> None:
    """Until every accepted job has ended, or the time is over."""
    deadline = time.monotonic() + within_s
    with httpx.Client(base_url=url, timeout=60) as http:
        for job_id in ledger.merges:
            while http.get(f"/v1/jobs/{job_id}").json().get("state") not in FINAL and time.monotonic() < deadline:
                time.sleep(0.2)


def _jobs(http: httpx.Client, ledger: Ledger, within_s: float) -> list[str]:
    wrong, deadline = [], time.monotonic() + within_s
    for job_id, sources in ledger.merges.items():
        while True:
            answer = http.get(f"/v1/jobs/{job_id}")
            job = answer.json()
            if answer.status_code != 200 or job["state"] in FINAL or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if answer.status_code != 200:
            wrong.append(f"job {job_id} was accepted and is forgotten")
        elif job["state"] not in FINAL:
            wrong.append(f"job {job_id} is still {job['state']}")
        elif job["state"] == "succeeded":
            if http.get(_path(job["result"]["ref"])).status_code != 200:
                wrong.append(f"job {job_id} made {job['result']['ref']}, which is not there")
        elif not any(ledger.uploads[ref].deletion != "none" for ref in sources):
            wrong.append(f"job {job_id} is {job['state']} for no reason of its client's: {job['error']}")
    return wrong


def _versions(http: httpx.Client, ledger: Ledger) -> list[str]:
    wrong = []
    for upload in ledger.uploads.values():
        status = http.get(_path(upload.ref)).status_code
        if status == 404:
            if upload.deletion == "none":
                wrong.append(f"{upload.ref} was acknowledged and is lost")
            continue
        if upload.deletion == "done":
            wrong.append(f"{upload.ref} was deleted and is back")
        for name, sha256 in upload.sha256.items():
            body = http.get(f"{_path(upload.ref)}/files/{name}").content
            if hashlib.sha256(body).hexdigest() != sha256:
                wrong.append(f"{upload.ref}: {name} is not what was uploaded")
    return wrong


def _aliases(http: httpx.Client, ledger: Ledger) -> list[str]:
    wrong = []
    for alias, moves in ledger.aliases.items():
        last = max((place for place, (_, known) in enumerate(moves) if known), default=0)
        allowed = {version for version, _ in moves[last:]}
        name, _, short = alias.partition(":")
        answer = http.get(f"/v1/adapters/{name}")
        found = answer.json().get("aliases", {}).get(short) if answer.status_code == 200 else None
        if any(known for _, known in moves) and found not in allowed:
            wrong.append(f"{alias} is {found}, and was moved to {sorted(allowed)}")
    return wrong


def _names(http: httpx.Client) -> list[str]:
    """Every version that a list shows is whole: its files are there and hash to what it says; no number is twice."""
    wrong, cursor = [], None
    while True:
        page = http.get("/v1/adapters", params={"limit": 100} | ({"cursor": cursor} if cursor else {})).json()
        for item in page["items"]:
            versions = http.get(f"/v1/adapters/{item['namespace']}/{item['name']}").json()["all_versions"]
            if doubled := [n for n, count in Counter(v["version"] for v in versions).items() if count > 1]:
                wrong.append(f"{item['namespace']}/{item['name']} has {doubled} twice")
            for version in versions:
                for file in version["files"]:
                    body = http.get(f"{_path(version['ref'])}/files/{file['name']}").content
                    if hashlib.sha256(body).hexdigest() != file["sha256"].removeprefix("sha256:"):
                        wrong.append(f"{version['ref']}: {file['name']} is half there")
        if (cursor := page["next_cursor"]) is None:
            return wrong


def _path(ref: str) -> str:
    name, _, number = ref.rpartition("@")
    return f"/v1/adapters/{name}/versions/{number}"
