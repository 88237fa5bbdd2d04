"""A whole distillation on a tiny random base: its parts, its laws, and going on after a stop."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import Dinov2Model

from deltas.adapter import Adapter
from merging.recycle.checkpoint import load_checkpoint, save_checkpoint
from merging.recycle.errors import BadDistillation, DistillationCancelled
from merging.recycle.inversion import Inversion, Losses, invert, resolved, shaken, surviving_patches, total_variation
from merging.recycle.lora import read_lora
from merging.recycle.meta import learning_rate
from merging.recycle.params import BENCHMARK, PAPER, SMALL, InversionParams, MetaParams, RecycleParams
from merging.recycle.randomness import generator
from merging.recycle.recycle import Distillation, Progress, distil
from merging.recycle.source import Source
from merging.recycle.statistics import dead_leaves, expected_moments, feature_distance, feature_moments
from merging.recycle.surrogates import Pool, Surrogates, ask_teacher
from merging.recycle.vision_base import VisionBase
from tests.merging.recycle.untrained import PARAMS, teacher


@pytest.fixture(scope="module")
def sources(tiny: VisionBase) -> list[Source]:
    """Three teachers, one of them with other ways."""
    return [teacher(tiny, 1), teacher(tiny, 2), teacher(tiny, 3, ways=4)]


@pytest.fixture(scope="module")
def whole(tiny: VisionBase, sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distillation that was not interrupted, with its report and its progress."""
    folder = tmp_path_factory.mktemp("whole")
    seen: list[Progress] = []
    result = distil(tiny, sources, PARAMS, folder, on_progress=seen.append)
    (folder / "report.json").write_text(json.dumps(result.report))
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["statistics", "inversion", "teaching", "meta"]
    inverting = [progress for progress in seen if progress.phase == "inversion"]
    assert [progress.done for progress in inverting] == list(range(1, inverting[0].total + 1))
    return folder


def test_the_report_counts_images_and_patches(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert [source["images"] for source in report["sources"]] == [12, 12, 16]
    assert [source["patches"] for source in report["sources"]] == [13, 13, 13], "25 − int(25 · 0.5)"
    assert [point["iteration"] for point in report["meta"]] == [5, 10, 12]


def test_cross_entropy_falls_in_inversion(tiny: VisionBase, sources: list[Source]) -> None:
    expected = expected_moments(tiny, tiny.network, 20, 16, "leaves", generator(0, "statistics"))
    params = InversionParams(steps=30, rate=0.1, jitter=0, flip=0)
    for source in sources:
        curve: list[Losses] = []
        labels = torch.arange(source.ways).repeat(3)
        state = Inversion.begin(labels, (3, 20, 20), params, generator(0, "noise"))
        invert(state, tiny, tiny.network, source, expected, params, 20, (0, source.ref, 0), curve.append)
        assert curve[-1].cross_entropy < 0.5 * curve[0].cross_entropy
        low, high = tiny.limits
        assert bool(((state.inputs >= low) & (state.inputs <= high)).all())


def test_peft_loads_the_result_and_computes_the_same(tiny: VisionBase, tiny_folder: Path, whole: Path) -> None:
    images = torch.randn(2, 3, 20, 20, generator=generator(0, "images"))
    model = PeftModel.from_pretrained(Dinov2Model.from_pretrained(tiny_folder), whole).eval()
    adapter = Adapter.open(whole / "adapter_config.json", whole / "adapter_model.safetensors")
    with torch.no_grad():
        wanted = model(images).pooler_output
        found = tiny.network(images, read_lora("me/meta@1", adapter, tiny)).embedding
        plain = tiny.network(images).embedding
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert float((found - plain).abs().max()) > 1e-3


def test_the_result_is_an_adapter_of_the_base(whole: Path) -> None:
    tensors = load_file(whole / "adapter_model.safetensors")
    assert len(tensors) == 12
    assert tensors["base_model.model.encoder.layer.2.attention.v_proj.lora_A.weight"].shape == (2, 24)
    assert float(tensors["base_model.model.encoder.layer.2.attention.v_proj.lora_B.weight"].abs().max()) > 0


@pytest.mark.parametrize("stop", [("inversion", 40), ("inversion", 95), ("teaching", 1), ("meta", 3), ("meta", 10)])
def test_going_on_equals_not_stopping_bit_for_bit(
    tiny: VisionBase, sources: list[Source], whole: Path, tmp_path: Path, stop: tuple[str, int]
) -> None:
    """Stopped in a phase after some steps, and started again in a new object on the same folder."""
    seen: list[Progress] = []
    with pytest.raises(DistillationCancelled):
        distil(
            tiny, sources, PARAMS, tmp_path,
            on_progress=seen.append,
            cancelled=lambda: (seen[-1].phase, seen[-1].done) == stop,
        )  # fmt: skip
    distil(tiny, sources, PARAMS, tmp_path)
    for file in sorted(whole.glob("*.safetensors")):
        mine, theirs = load_file(tmp_path / file.name), load_file(file)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), file.name


def test_what_is_finished_is_not_made_again_unless_it_would_differ(
    tiny: VisionBase, sources: list[Source], whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "again")
    seen: list[str] = []
    distil(tiny, sources, PARAMS, folder, on_progress=lambda progress: seen.append(progress.phase))
    assert seen == []
    other = PARAMS.model_copy(update={"meta": PARAMS.meta.model_copy(update={"distance": "squared"})})
    distil(tiny, sources, other, folder, on_progress=lambda progress: seen.append(progress.phase))
    assert set(seen) == {"meta"}
    seen.clear()
    distil(tiny, [sources[0], teacher(tiny, 9)], PARAMS, folder, on_progress=lambda p: seen.append(p.phase))
    assert seen.count("inversion") == 2 * 30, "the first source's images stay"


def test_surrogates_are_pixels(tiny: VisionBase, sources: list[Source], whole: Path) -> None:
    shown = Distillation(tiny, sources, PARAMS, whole).surrogates()
    assert [tuple(images.shape) for images in shown] == [(12, 3, 20, 20), (12, 3, 20, 20), (16, 3, 20, 20)]
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in shown)


def test_the_regulariser_pulls_features_towards_what_is_expected(tiny: VisionBase, sources: list[Source]) -> None:
    expected = expected_moments(tiny, tiny.network, 20, 16, "leaves", generator(0, "statistics"))
    last: list[float] = []
    for weight in (1e-9, 1.0):
        curve: list[Losses] = []
        params = InversionParams(steps=30, feature_weight=weight, prune={}, jitter=0, flip=0)
        state = Inversion.begin(torch.tensor([0, 1, 2] * 3), (3, 20, 20), params, generator(0, "noise"))
        invert(state, tiny, tiny.network, sources[0], expected, params, 20, (0, "x", 0), curve.append)
        last.append(curve[-1].features)
    assert last[1] < 0.7 * last[0]


def test_moments_over_batches_are_those_of_all_images(tiny: VisionBase) -> None:
    images = tiny.normalised(dead_leaves(40, 20, generator(1, "leaves")))
    with torch.no_grad():
        at_once = tiny.network(images, moments=True).moments
    in_batches = feature_moments(tiny.network, images)
    assert float(feature_distance(in_batches, at_once)) < 1e-3
    wanted = sum(float(torch.linalg.vector_norm(m) + torch.linalg.vector_norm(v)) for m, v in at_once)
    zeros = [(torch.zeros_like(m), torch.zeros_like(v)) for m, v in at_once]
    assert float(feature_distance(at_once, zeros)) == pytest.approx(wanted, rel=1e-5)


def test_total_variation_by_hand() -> None:
    """Rows 0 0 / 2 1: down 4 and 1, across 0 and 1."""
    assert float(total_variation(torch.tensor([[[[0.0, 0.0], [2.0, 1.0]]]]))) == 2.5 + 0.5


def test_shaking_only_moves_pixels() -> None:
    images = torch.arange(400.0).reshape(1, 1, 20, 20).expand(2, 3, 20, 20)
    params = InversionParams(jitter=0.1, flip=0.5)
    shifted = [shaken(images, params, generator(0, step)) for step in range(20)]
    assert all(torch.equal(one.sort().values.sum(), images.sum()) for one in shifted)
    assert len({float(one[0, 0, 0, 0]) for one in shifted}) > 5
    assert torch.equal(shaken(images, InversionParams(jitter=0, flip=1), generator(0, 0)), images.flip(3))


def test_teachers_opinions_of_mirrored_images_are_theirs(tiny: VisionBase, sources: list[Source]) -> None:
    images = torch.randn(6, 3, 20, 20, generator=generator(0, "images"))
    patches = surviving_patches(tiny.network, sources[0], images, {-1: 0.6})
    said = ask_teacher(tiny.network, sources[0], images, patches)
    pool = Pool([Surrogates(images, torch.tensor([0, 1, 2] * 2), patches, said)], columns=5)
    for use in range(4):
        task = pool.taught_task(1, 1, generator(use, "task"))
        assert task.teacher is not None
        again = sources[0].logits(tiny.network, task.inputs[3:], task.patches[3:]).log_softmax(1)
        torch.testing.assert_close(task.teacher, again, rtol=1e-4, atol=1e-4)
        assert task.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_interpolated_tasks_mix_sources_and_have_no_teacher() -> None:
    held = []
    for number in range(3):
        images = torch.full((6, 3, 20, 20), float(number))
        teacher_says = torch.zeros(2, 6, 2)
        held.append(Surrogates(images, torch.tensor([0, 1] * 3), torch.arange(25).expand(6, 25), teacher_says))
    pool, seen = Pool(held, columns=5), set()
    for use in range(30):
        task = pool.interpolated_task(3, 1, 2, generator(use, "mixed"))
        assert task.teacher is None
        assert task.inputs.shape[0] == 9
        seen.add(len(set(task.inputs[:3, 0, 0, 0].tolist())))
    assert seen == {2, 3}
    named = [Surrogates(h.inputs, h.labels, h.patches, h.teacher, ("same", f"own-{n}")) for n, h in enumerate(held)]
    for use in range(30):
        task = Pool(named, columns=5).interpolated_task(4, 1, 1, generator(use, "named"), distinct=True)
        assert sorted(task.inputs[:4, 0, 0, 0].tolist()) in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])
    with pytest.raises(BadDistillation, match="have 4"):
        Pool(named, columns=5).interpolated_task(5, 1, 1, generator(0, "named"), distinct=True)
    with pytest.raises(BadDistillation, match="have 6"):
        pool.interpolated_task(7, 1, 2, generator(0, "mixed"))


def test_the_learning_rate_goes_in_cycles() -> None:
    params = MetaParams(iterations=200)
    assert learning_rate(0, params) == learning_rate(100, params) == pytest.approx(1e-5)
    assert learning_rate(25, params) == pytest.approx(1e-3)
    assert learning_rate(10, params) == pytest.approx(1e-5 + 0.4 * 0.99e-3)
    assert learning_rate(62, params) == pytest.approx(1e-5 + 0.99e-3 * 0.5104714)
    assert learning_rate(99, params) < 1.2e-5


def test_profiles_and_refusals(tiny: VisionBase, sources: list[Source], tmp_path: Path) -> None:
    assert (PAPER.inversion.steps, PAPER.inversion.rate, PAPER.inversion.feature_weight) == (2000, 0.25, 0.01)
    assert (PAPER.meta.queries, PAPER.rank, PAPER.meta.distance) == (15, 4, "euclidean")
    assert BENCHMARK.per_class == 6
    assert SMALL.per_class == 6
    for wrong in (
        {"images_per_class": 3},
        {"meta": {"warmup": 100}},
        {"rank": 0},
        {"image_px": float("nan")},
        {"x": 1},
    ):
        with pytest.raises(ValidationError):
            RecycleParams.model_validate(wrong)
    assert resolved({-1: 0.5, 0: 0.2, 1: 0.0}, 3) == {2: 0.5, 0: 0.2}
    for update, complaint in (
        ({"image_px": 21}, "multiple of the base's patch"),
        ({"inversion": InversionParams(prune={3: 0.5})}, "blocks 0 to 2"),
        ({"meta": MetaParams(ways=11)}, "the sources have 10"),
        ({"targets": ("c_proj",)}, "no linear layer"),
    ):
        with pytest.raises(BadDistillation, match=complaint):
            distil(tiny, sources, PARAMS.model_copy(update=update), tmp_path)
    with pytest.raises(BadDistillation, match="at least one source"):
        distil(tiny, [], PARAMS, tmp_path)


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert load_checkpoint(path, "x") is None
    save_checkpoint(path, {"t": torch.ones(2)}, {"identity": "x", "step": 3})
    kept = load_checkpoint(path, "x")
    assert kept is not None
    assert (kept[0]["t"].tolist(), kept[1]["step"]) == ([1, 1], 3)
    assert load_checkpoint(path, "y") is None
    path.write_bytes(path.read_bytes()[:-3])
    assert load_checkpoint(path, "x") is None
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
