"""The Llama that is written out against transformers' and PEFT's own, state for state; sources of texts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from deltas.adapter import Adapter
from merging.recycle.errors import BadTexts, HeadMismatch, HeadMissing, SourceUnusable, TextBaseUnsupported
from merging.recycle.randomness import generator
from merging.recycle.text_base import TextBase, load_text_base
from merging.recycle.text_predict import BareTexts, embed_texts
from merging.recycle.text_source import LabelWords, open_text_source
from serving.base_model import ensure_base
from tests.merging.recycle.words import texts

ASKED = LabelWords("ask : {text} answer", ("w0x0", "w1x0", "w2x0"))


@pytest.fixture(scope="module")
def peft_folder(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on queries and values that PEFT has made, its B not zero."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(text_folder),
        LoraConfig(task_type=TaskType.CAUSAL_LM, r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=generator(0, name))
    model.save_pretrained(folder)
    return folder


def opened(folder: Path) -> Adapter:
    return Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")


def test_states_are_those_of_transformers(tiny_text: TextBase, text_folder: Path) -> None:
    oracle = LlamaForCausalLM.from_pretrained(text_folder).eval()
    ids = torch.randint(5, 165, (3, 7), generator=generator(0, "ids"))
    network = tiny_text.network
    with torch.no_grad():
        wanted = oracle.model(ids).last_hidden_state
        heard = network(network.table[ids])
        torch.testing.assert_close(heard.embedding, wanted.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heard.last, wanted[:, -1], rtol=1e-4, atol=1e-5)
        eager = LlamaForCausalLM.from_pretrained(text_folder, attn_implementation="eager").eval()
        rows = eager.model(ids, output_attentions=True).attentions[-1][:, :, -1].mean(1)
        torch.testing.assert_close(heard.attention, rows, rtol=1e-4, atol=1e-5)
        some = torch.tensor([[0, 2, 3, 6]] * 3)
        skipping = oracle.model(ids.gather(1, some), position_ids=some).last_hidden_state
        torch.testing.assert_close(
            network(network.table[ids], patches=some).last, skipping[:, -1], rtol=1e-4, atol=1e-5
        )


def test_texts_go_on_from_a_beginning(tiny_text: TextBase) -> None:
    ids = torch.randint(5, 165, (3, 9), generator=generator(1, "ids"))
    ids[:, :4] = ids[0, :4]
    network = tiny_text.network
    with torch.no_grad():
        whole = network(network.table[ids])
        begun = network(network.table[ids[:1, :4]])
        after = network(network.table[ids[:, 4:]], beginning=begun.beginning)
    torch.testing.assert_close(after.last, whole.last, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.attention, whole.attention[:, 4:], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(tiny_text: TextBase) -> None:
    found, _ = texts([0, 1, 2, 3], 3, generator(0, "texts"))
    together = embed_texts(tiny_text, found)
    alone = torch.cat([embed_texts(tiny_text, [text]) for text in found])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([[0, *tiny_text.ids(found[0])]])
    whole = tiny_text.network(tiny_text.network.table[ids])
    inputs, _ = tiny_text.batch(found[:1])
    torch.testing.assert_close(BareTexts(tiny_text.network, (0,))(inputs).last, whole.last, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadTexts):
        tiny_text.batch(["w0x0", ""])


def test_label_words_are_a_head(tiny_text: TextBase, text_folder: Path, peft_folder: Path) -> None:
    """What a source says equals the words' logits after its prompt, by PEFT."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(text_folder), peft_folder).eval()
    source = open_text_source("me/a@1", opened(peft_folder), tiny_text, label_words=ASKED)
    assert (source.ways, source.classes, len(source.before), len(source.after)) == (3, ("w0x0", "w1x0", "w2x0"), 2, 1)
    text = "w3x1 w4x2 w5x5"
    words = [tiny_text.ids(word)[0] for word in ASKED.words]
    inputs, _ = tiny_text.batch([text])
    with torch.no_grad():
        wanted = model(torch.tensor([tiny_text.ids(f"ask : {text} answer")])).logits[0, -1, words]
        heard = source.hear(tiny_text.network, inputs, source.beginning(tiny_text.network))
        torch.testing.assert_close(source.answers(heard)[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_classifiers_own_head_is_read(tiny_text: TextBase, text_folder: Path, tmp_path: Path) -> None:
    """A sequence classifier, which PEFT saves whole: against its own logits."""
    torch.manual_seed(3)
    plain = LlamaForSequenceClassification.from_pretrained(text_folder, num_labels=4, pad_token_id=0)
    model = get_peft_model(plain, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    source = open_text_source("me/b@1", opened(tmp_path), tiny_text, classes=("a", "b", "c", "d"))
    assert (source.ways, source.before, source.after) == (4, (), ())
    text = "w3x1 w4x2 w5x5"
    with torch.no_grad():
        wanted = model(torch.tensor([tiny_text.ids(text)])).logits
        heard = source.hear(tiny_text.network, tiny_text.batch([text])[0], ())
        torch.testing.assert_close(source.answers(heard), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(SourceUnusable, match="beside its LoRA it changes score"):
        open_text_source("me/b@1", opened(tmp_path), tiny_text, label_words=ASKED)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (LabelWords("ask : answer", ("w0x0", "w1x0")), "0 times"),
        (LabelWords("{text} {text}", ("w0x0", "w1x0")), "2 times"),
        (LabelWords("{text}", ("w0x0 w1x0", "w1x0")), "is 2 tokens"),
        (LabelWords("{text}", ("w0x0", "w0x0")), "all different"),
    ],
)
def test_label_words_that_make_no_head(
    tiny_text: TextBase, peft_folder: Path, asked: LabelWords, complaint: str
) -> None:
    with pytest.raises(HeadMismatch, match=complaint):
        open_text_source("me/a@1", opened(peft_folder), tiny_text, label_words=asked)
    with pytest.raises(HeadMissing):
        open_text_source("me/a@1", opened(peft_folder), tiny_text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "known is 'llama'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "of type 'yarn'"),
        ({"hidden_act": "gelu"}, "known is 'silu'"),
        ({"num_hidden_layers": 3}, "lack"),
    ],
)
def test_a_base_of_another_kind_is_refused(
    text_folder: Path, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    folder = ensure_base(str(shutil.copytree(text_folder, tmp_path / "plain")), [], tmp_path / "bases")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(TextBaseUnsupported, match=complaint):
        load_text_base(folder)
