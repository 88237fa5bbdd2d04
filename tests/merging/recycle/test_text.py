"""A whole distillation of text adapters (our extension) on a tiny random Llama: parts, laws, going on after a stop."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from deltas.adapter import Adapter
from deltas.factors import Factors
from merging.recycle.errors import BadDistillation, BadEpisode, DistillationCancelled
from merging.recycle.evaluate import few_shot_accuracy
from merging.recycle.inversion import Inversion, Losses
from merging.recycle.lora import new_lora, read_lora
from merging.recycle.params import MetaParams, TextInversionParams, TextRecycleParams
from merging.recycle.phases import Progress
from merging.recycle.randomness import generator
from merging.recycle.source import Head
from merging.recycle.text import TextDistillation, distil_texts
from merging.recycle.text_base import TextBase
from merging.recycle.text_inversion import Vocabulary, heard_tokens, invert_texts
from merging.recycle.text_predict import BareTexts, embed_texts, predict_texts
from merging.recycle.text_source import TextSource
from tests.merging.recycle.words import GROUPS, WORDS, texts

PARAMS = TextRecycleParams(
    length=6,
    texts_per_class=4,
    rank=2,
    inversion=TextInversionParams(steps=30, batch=20, masked=0.3),
    meta=MetaParams(iterations=12, cycle=5, warmup=2, queries=3, ways=3),
)
TRAINING, TEST = list(range(10)), list(range(10, GROUPS))


def train_teacher(base: TextBase, number: int, ways: int = 3, steps: int = 20) -> TextSource:
    """A LoRA and a head on the last state, on some groups of words, by Adam."""
    rng = generator(0, "text-teacher", number)
    groups = [TRAINING[i] for i in torch.randperm(len(TRAINING), generator=rng)[:ways].tolist()]
    found, labels = texts(groups, 12, rng, lengths=(6, 6))
    inputs, _ = base.batch(found)
    lora = new_lora(base, ("q_proj", "v_proj"), 2, rng)
    head = Head(torch.zeros(ways, base.width, requires_grad=True), torch.zeros(ways, requires_grad=True))
    weights = [side for f in lora.values() for side in (f.A, f.B)] + [head.weight, head.bias]
    optimiser = torch.optim.Adam(weights, lr=3e-2)
    after = tuple(base.ids("answer"))
    source = TextSource(f"me/texts-{number}@1", lora, head, (), (), after)
    for _ in range(steps):
        loss = F.cross_entropy(source.answers(source.hear(base.network, inputs, ())), labels)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        optimiser.step()
    finished = {name: Factors(f.A.detach(), f.B.detach()) for name, f in lora.items()}
    return TextSource(source.ref, finished, Head(head.weight.detach(), head.bias.detach()), (), (2, 3), after)


@pytest.fixture(scope="module")
def sources(tiny_text: TextBase) -> list[TextSource]:
    """Three teachers, one of them with other ways, each asked after two tokens and before one."""
    return [train_teacher(tiny_text, 1), train_teacher(tiny_text, 2), train_teacher(tiny_text, 3, ways=4)]


@pytest.fixture(scope="module")
def whole(tiny_text: TextBase, sources: list[TextSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distillation that was not interrupted, with its report."""
    folder = tmp_path_factory.mktemp("whole-texts")
    seen: list[Progress] = []
    result = distil_texts(tiny_text, sources, PARAMS, folder, on_progress=seen.append)
    (folder / "report.json").write_text(json.dumps(result.report))
    (folder / "adapter_config.json").write_text(json.dumps(result.config))
    assert list(dict.fromkeys(progress.phase for progress in seen)) == ["inversion", "teaching", "meta"]
    return folder


def test_the_report_counts_texts_and_tokens(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert report["paper"].startswith("our extension")
    assert [source["texts"] for source in report["sources"]] == [12, 12, 16]
    assert [source["tokens"] for source in report["sources"]] == [5, 5, 5], "6 − int(6 · 0.3)"
    assert [point["iteration"] for point in report["meta"]] == [5, 10, 12]


@pytest.mark.parametrize("tokens", ["free", "real"])
def test_cross_entropy_falls_in_inversion(tiny_text: TextBase, sources: list[TextSource], tokens: str) -> None:
    params = TextInversionParams.model_validate({"steps": 40, "tokens": tokens, "rate": 0.2})
    vocabulary = Vocabulary(tiny_text, tiny_text.network)
    for source in sources:
        curve: list[Losses] = []
        labels = torch.arange(source.ways).repeat(3)
        state = Inversion.begin(labels, (6, 24), params, generator(0, "noise"))
        invert_texts(state, tiny_text, tiny_text.network, source, vocabulary, params, curve.append)
        assert min(point.cross_entropy for point in curve[-5:]) < 0.6 * curve[0].cross_entropy
        if tokens == "free":
            assert curve[-1].features < curve[0].features


def test_decoded_surrogates_are_real_words(tiny_text: TextBase, sources: list[TextSource], tmp_path: Path) -> None:
    """As strings, and as what meta-training is given: rows of the embedding table."""
    inversion = PARAMS.inversion.model_copy(update={"tokens": "decoded", "steps": 10})
    run = TextDistillation(tiny_text, sources, PARAMS.model_copy(update={"inversion": inversion}), tmp_path)
    shown = run.surrogates()
    assert [len(found) for found in shown] == [12, 12, 16]
    known = {*WORDS, "ask", ":", "answer"}
    assert all(len(text.split()) == 6 and set(text.split()) <= known for found in shown for text in found)
    run.run()
    inputs = load_file(tmp_path / "inversion-000-00.safetensors")["inputs"]
    rounded = tiny_text.embeddings(run.vocabulary.rounded(inputs)).reshape(-1, 24)
    nearest = torch.cdist(rounded, tiny_text.network.table).min(1).values
    assert float(nearest.max()) < 1e-3
    far = (tiny_text.normalised(tiny_text.network.table)[run.vocabulary.ids][None] - inputs[0][:, None]).norm(dim=2)
    assert torch.equal(run.vocabulary.nearest(inputs[0]), far.argmin(1))


def test_what_a_teacher_hears_least_is_left_out(tiny_text: TextBase, sources: list[TextSource]) -> None:
    source, network = sources[0], tiny_text.network
    inputs = tiny_text.embeddings(torch.randn(5, 6, 24, generator=generator(0, "inputs")))
    teacher, everything = heard_tokens(network, source, inputs, 0.0)
    assert everything.tolist() == [[0, 1, 2, 3, 4, 5]] * 5
    half = heard_tokens(network, source, inputs, 0.5)[1]
    with torch.no_grad():
        paid = source.hear(network, inputs, source.beginning(network)).attention[:, :6]
    assert all(set(kept) == set(row.topk(3).indices.tolist()) for kept, row in zip(half.tolist(), paid, strict=True))
    student = BareTexts(network, tiny_text.start)
    assert torch.equal(student(inputs, patches=everything).embedding, student(inputs).embedding)
    assert teacher.shape == (1, 5, 3)


def test_peft_loads_the_result_and_computes_the_same(tiny_text: TextBase, text_folder: Path, whole: Path) -> None:
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(text_folder), whole).eval()
    adapter = Adapter.open(whole / "adapter_config.json", whole / "adapter_model.safetensors")
    text = "w3x1 w4x2 w5x5"
    with torch.no_grad():
        states = model.base_model.model.model(torch.tensor([[0, *tiny_text.ids(text)]])).last_hidden_state
    found = embed_texts(tiny_text, [text], read_lora("me/meta@1", adapter, tiny_text))
    torch.testing.assert_close(found, states[:, 1:].mean(1), rtol=1e-3, atol=1e-4)
    assert float((found - embed_texts(tiny_text, [text])).abs().max()) > 1e-3


@pytest.mark.parametrize("stop", [("inversion", 28), ("inversion", 70), ("teaching", 1), ("meta", 3), ("meta", 10)])
def test_going_on_equals_not_stopping_bit_for_bit(
    tiny_text: TextBase, sources: list[TextSource], whole: Path, tmp_path: Path, stop: tuple[str, int]
) -> None:
    """Stopped in a phase after some steps, and started again in a new object on the same folder."""
    seen: list[Progress] = []
    with pytest.raises(DistillationCancelled):
        distil_texts(
            tiny_text, sources, PARAMS, tmp_path,
            on_progress=seen.append,
            cancelled=lambda: (seen[-1].phase, seen[-1].done) == stop,
        )  # fmt: skip
    distil_texts(tiny_text, sources, PARAMS, tmp_path)
    for file in sorted(whole.glob("*.safetensors")):
        mine, theirs = load_file(tmp_path / file.name), load_file(file)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), file.name


def test_the_meta_adapter_beats_chance_by_far_on_unseen_words(
    tiny_text: TextBase, sources: list[TextSource], tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"meta": MetaParams(iterations=40, cycle=20, warmup=5, queries=3)})
    result = distil_texts(tiny_text, sources, params, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(result.config))
    lora = read_lora("me/meta@1", Adapter.open(tmp_path / "adapter_config.json", result.weights), tiny_text)
    found, labels = texts(TEST, 20, generator(0, "test"))
    embeddings = embed_texts(tiny_text, found, lora)
    accuracy = few_shot_accuracy(embeddings, labels, shots=5, queries=10, episodes=100, rng=generator(0, "episodes"))
    assert accuracy.mean - accuracy.interval > 0.2 + 0.15


def test_prediction_is_the_nearest_prototype(tiny_text: TextBase) -> None:
    """Against embeddings made apart, class means and distances written out."""
    found, labels = texts(TEST[:3], 3, generator(0, "few"))
    asked, _ = texts(TEST[:3], 2, generator(1, "few"))
    probabilities = predict_texts(tiny_text, found, labels, asked)
    known, queries = (embed_texts(tiny_text, part).double() for part in (found, asked))
    centres = torch.stack([known[labels == c].mean(0) for c in range(3)])
    wanted = (-(queries[:, None] - centres).norm(dim=2)).softmax(1)
    torch.testing.assert_close(probabilities.double(), wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(BadEpisode, match="one label"):
        predict_texts(tiny_text, found, labels[:2], asked)


def test_refusals(tiny_text: TextBase, sources: list[TextSource], tmp_path: Path) -> None:
    for wrong in ({"texts_per_class": 3}, {"length": 0}, {"inversion": {"tokens": "x"}}, {"x": 1}):
        with pytest.raises(ValidationError):
            TextRecycleParams.model_validate(wrong)
    with pytest.raises(BadDistillation, match="at least one source"):
        distil_texts(tiny_text, [], PARAMS, tmp_path)
    many = PARAMS.model_copy(update={"meta": MetaParams(ways=11)})
    with pytest.raises(BadDistillation, match="the sources have 10"):
        distil_texts(tiny_text, sources, many, tmp_path)
