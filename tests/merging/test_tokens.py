"""Added tokens: united by string, loaded by PEFT on a resized base with the logits of the written rule, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from deltas.adapter import Adapter
from deltas.applied import refusals
from deltas.tokenizer import Tokenizer as TokenizerFile
from merging.errors import ExtrasConflict, NotMergeable, TokenConflict
from merging.tokens import AddedRow, mean_row
from tests.merging.grown import WORDS, Grown, grown, loaded, logits, merged, oracle, planned, tokenizer

WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"]}
PROMPT = "w3 <call> w17 <end> w39 <think> w1 <call>"


def two(tmp_path: Path, tie: bool = False, **config: Any) -> list[Grown]:
    """<call> is in both, under other ids."""
    return [
        grown(tmp_path, "a", ["<call>", "<end>"], seed=1, tie=tie, **config),
        grown(tmp_path, "b", ["<think>", "<call>"], seed=2, tie=tie, **config),
    ]


@pytest.mark.parametrize("weights", [(0.75, 0.25), (0.75, -0.5)])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("config", [WHOLE, {}])  # {}: PEFT saves the tables by itself
def test_peft_loads_the_written_rule_on_a_resized_base(
    tmp_path: Path, config: dict[str, Any], tie: bool, weights: tuple[float, float]
) -> None:
    sources = two(tmp_path, tie, **config)
    result = merged(planned(sources, weights), tmp_path / "merged")
    ids = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json")).encode(PROMPT).ids
    assert ids == [3, 40, 17, 41, 39, 42, 1, 40]
    assert result.config["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    found = logits(loaded(tmp_path / "merged", WORDS + 3, tie), ids)
    torch.testing.assert_close(
        found, logits(oracle(sources, weights, ["<call>", "<end>", "<think>"], tie), ids), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("tie", [False, True])
def test_retrained_and_added_rows_stay_rows(tmp_path: Path, tie: bool) -> None:
    sources = [
        grown(tmp_path, "a", ["<call>", "<end>"], seed=1, tie=tie, trainable_token_indices=[41, 3, 40]),
        grown(tmp_path, "b", ["<think>", "<call>"], seed=2, tie=tie, trainable_token_indices=[40, 41, 7]),
    ]
    result = merged(planned(sources), tmp_path / "merged")
    assert result.config["trainable_token_indices"] == {"model.embed_tokens": [3, 7, 40, 41, 42]}
    order = ["<call>", "<end>", "<think>"]
    ids = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json")).encode(PROMPT).ids
    expected = logits(oracle(sources, (0.75, 0.25), order, tie), ids)
    torch.testing.assert_close(logits(loaded(tmp_path / "merged", WORDS + 3, tie), ids), expected, rtol=1e-4, atol=1e-5)


def test_a_merge_of_merges_goes_on_with_its_tokens(tmp_path: Path) -> None:
    sources = two(tmp_path, **WHOLE)
    merged(planned(sources, (1.0, 1.0)), tmp_path / "once")
    once = Grown(tmp_path / "base", tmp_path / "once", ("<call>", "<end>", "<think>"), {}).open()
    assert once.obstacles == ()
    assert once.added_tokens == {40: "<call>", 41: "<end>", 42: "<think>"}
    assert any("has rows of added tokens" in reason for reason in refusals(once, {"lm_head"}))
    third = grown(tmp_path, "c", ["<new>", "<end>"], seed=3, **WHOLE)
    plan = planned([once, third], (0.5, 2.0))
    listed = plan.to_dict()["added_tokens"]
    assert [(token["id"], token["token"], token["sources"]) for token in listed] == [
        (40, "<call>", ["t/0"]), (41, "<end>", ["t/0", "t/1"]), (42, "<think>", ["t/0"]), (43, "<new>", ["t/1"]),
    ]  # fmt: skip
    assert merged(plan, tmp_path / "twice").report["added_tokens"] == listed


def test_a_source_without_added_tokens_and_padding_rows(tmp_path: Path) -> None:
    """Rows beyond the last token are no token's; a source of the base's own tokens changes those alone."""
    padded = grown(tmp_path, "a", ["<call>"], seed=1, spare=7, **WHOLE)
    plain = grown(tmp_path, "b", [], seed=2, **WHOLE)
    (plain.adapter / "tokenizer.json").unlink()
    result = merged(planned([plain.open(named=False), padded.open()]), tmp_path / "merged")
    tensors = load_file(result.weights)
    stored = load_file(padded.adapter / "adapter_model.safetensors")
    for module in ("model.embed_tokens", "lm_head"):
        found = tensors[f"base_model.model.{module}.weight"]
        assert found.shape == (41, 16)
        torch.testing.assert_close(found[40], stored[f"base_model.model.{module}.weight"][40])
    ids = [1, 40, 5]
    expected = logits(oracle([plain, padded], (0.75, 0.25), ["<call>"], False), ids)
    torch.testing.assert_close(logits(loaded(tmp_path / "merged", 41, False), ids), expected, rtol=1e-4, atol=1e-5)


def test_large_tables_are_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = two(tmp_path, **WHOLE)
    whole = merged(planned(sources), tmp_path / "whole").weights.read_bytes()
    monkeypatch.setattr("merging.output.BLOCK_ENTRIES", 9 * 16)
    assert merged(planned(sources), tmp_path / "blocks").weights.read_bytes() == whole


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((3.0, 1.0), [1.5, 0.75]), ((-3.0, 1.0), [1.5, 0.75]), ((0.0, 1.0), [0.0, 3.0]), ((0.0, 0.0), [1.0, 1.5])],
)
def test_the_row_of_an_added_token_by_hand(weights: tuple[float, float], expected: list[float]) -> None:
    """(3·[2, 0] + 1·[0, 3]) / 4 = [1.5, 0.75]."""
    rows = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])]
    assert mean_row(AddedRow(40, (0, 1), (0, 0)), weights, rows).tolist() == expected


def test_without_a_tokenizer_it_is_said_what_to_upload(tmp_path: Path) -> None:
    source = grown(tmp_path, "a", ["<call>"], **WHOLE)
    with pytest.raises(NotMergeable, match=r"upload its tokenizer\.json with it"):
        planned([source.open(named=False)])
    alone = Adapter.open(source.adapter / "adapter_config.json", source.adapter / "adapter_model.safetensors",
                         tokenizer=TokenizerFile(source.adapter / "tokenizer.json"))  # fmt: skip
    with pytest.raises(NotMergeable, match="measured from the base model's weights, which are not here"):
        planned([alone])


def beside(source: Grown, made: Tokenizer) -> Grown:
    """The adapter beside another tokenizer."""
    made.save(str(source.adapter / "tokenizer.json"))
    return source


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (tokenizer([AddedToken("<call>", lstrip=True), "<end>"]), "token '<call>' differs in 'lstrip' in 't/0' and"),
        (tokenizer(["<call>"], [f"w{i}" for i in (1, 0, *range(2, WORDS))]), "token 'w0' has the ids 0 and 1"),
    ],
)
def test_tokenizers_that_contradict_each_other_are_refused_by_token(
    tmp_path: Path, made: Tokenizer, sentence: str
) -> None:
    sources = two(tmp_path, **WHOLE)
    beside(sources[1], made)
    with pytest.raises(TokenConflict, match=sentence):
        planned(sources)


def test_a_token_that_the_base_has_under_another_id_is_refused(tmp_path: Path) -> None:
    source = grown(tmp_path, "a", ["<call>"], **WHOLE)
    tokenizer(words=["w0", "<call>", *(f"w{i}" for i in range(2, WORDS))]).save(str(source.base / "tokenizer.json"))
    with pytest.raises(TokenConflict, match="token '<call>' has id 40 in 't/0', but 1 in the base model's tokenizer"):
        planned([source])


def test_the_same_id_for_different_strings_below_the_base_vocabulary_is_refused(tmp_path: Path) -> None:
    """A base with spare rows: both sources named the same one, so no row could be moved."""
    found = []
    for i, name in enumerate(("<one>", "<two>")):
        source = grown(tmp_path, f"s{i}", [], seed=i + 1, modules_to_save=["embed_tokens"])
        made = tokenizer([name], [f"w{k}" for k in range(WORDS - 1)])  # the base's last row has no word
        found.append(beside(source, made))
    tokenizer(words=[f"w{k}" for k in range(WORDS - 1)]).save(str(tmp_path / "base" / "tokenizer.json"))
    with pytest.raises(TokenConflict, match="id 39, of the base model's own, is '<one>' in 't/0' and '<two>' in 't/1'"):
        planned(found)


def test_a_token_without_a_row_in_a_table_that_others_resize_is_refused(tmp_path: Path) -> None:
    sources = two(tmp_path, **WHOLE)
    path = sources[1].adapter / "adapter_model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(path).items() if "lm_head" not in key}
    save_file(tensors, path)
    config = json.loads((sources[1].adapter / "adapter_config.json").read_text())
    (sources[1].adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["embed_tokens"]}))
    with pytest.raises(ExtrasConflict, match=r"'lm_head\.weight' has no row for the added token '<think>': 't/1'"):
        planned(sources)
    assert any("no source brings rows" in warning for warning in planned(sources[1:]).warnings)


def test_low_rank_factors_of_the_base_size_do_not_fit_a_grown_vocabulary(tmp_path: Path) -> None:
    first = grown(tmp_path, "a", ["<call>"], modules_to_save=["embed_tokens"], trainable_token_indices=None)
    second = grown(tmp_path, "b", [], target_modules=["q_proj", "lm_head"])
    with pytest.raises(ExtrasConflict, match="low-rank factors of the base model's size"):
        planned([first, second])


def test_a_template_of_the_first_source_has_the_new_ids(tmp_path: Path) -> None:
    """Its own padding and truncation are settings of a run, and stay behind."""
    sources = two(tmp_path, **WHOLE)
    made = tokenizer(["<think>", "<call>"])
    made.post_processor = TemplateProcessing(single="<call> $A", special_tokens=[("<call>", 41)])
    made.enable_padding(pad_id=41, pad_token="<call>")
    beside(sources[1], made)
    third = grown(tmp_path, "c", ["<call>", "<new>"], seed=3, **WHOLE)
    plan = planned([third, sources[1]])
    document = json.loads(plan.vocabulary.file()) if plan.vocabulary else {}
    assert document["post_processor"] is None
    plan = planned([sources[1], third])
    result = merged(plan, tmp_path / "merged")
    assert result.tokenizer is not None
    found = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json"))
    assert found.encode("<new> w1").ids == [41, 42, 1]
    assert found.padding is None


def test_a_string_keeps_its_rows_whatever_the_order_of_sources(tmp_path: Path) -> None:
    """Ids follow the order of the sources; what they stand for does not."""
    sources = two(tmp_path, **WHOLE)
    rows: list[dict[str, torch.Tensor]] = []
    for order, weights in ((sources, (0.75, 0.25)), (sources[::-1], (0.25, 0.75))):
        result = merged(planned(order, weights), tmp_path / f"merged-{len(rows)}")
        tokens = {token["token"]: token["id"] for token in result.report["added_tokens"]}
        tables = load_file(result.weights)
        table = tables["base_model.model.model.embed_tokens.weight"]
        rows.append({token: table[id] for token, id in tokens.items()} | {"base": table[:WORDS]})
    assert list(rows[0]) == ["<call>", "<end>", "<think>", "base"]
    assert list(rows[1]) == ["<think>", "<call>", "<end>", "base"]
    for token, row in rows[0].items():
        torch.testing.assert_close(rows[1][token], row, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("tie", "sentence"),
    [(False, "gets no row for the added token '<end>'"), (True, "'<end>' of 't/0' has no row in any source")],
)
def test_an_added_token_that_was_not_retrained_is_named(tmp_path: Path, tie: bool, sentence: str) -> None:
    """Untied, PEFT keeps the whole output layer, with a row for it; tied, nothing but the rows that were trained."""
    source = grown(tmp_path, "a", ["<end>", "<call>"], tie=tie, trainable_token_indices={"embed_tokens": [41]})
    assert any(sentence in warning for warning in planned([source]).warnings)
