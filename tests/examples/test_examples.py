"""The example adapters and held-out examples are what their cards say, and small and different enough to show."""

import json
import re
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors import safe_open
from tokenizers import Tokenizer

from deltas.adapter import Adapter
from examples.tasks import TASKS

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted((EXAMPLES / "adapters").iterdir())
HELD_OUT = sorted((EXAMPLES / "heldout").glob("*.jsonl"))
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST_BYTES = 2_000_000
LEAST_GAIN = 15.0

each_adapter = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_file = pytest.mark.parametrize("file", HELD_OUT, ids=lambda file: file.stem)


def card_accuracies(folder: Path) -> tuple[float, float]:
    """(base, adapter) of the table in a card."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = [re.search(rf"^\| {row} \| (\d+\.\d) \|$", card, re.MULTILINE) for row in ("base model", "this adapter")]
    base, adapter = (float(match.group(1)) for match in found if match)
    return base, adapter


def test_there_are_at_least_six_and_every_one_has_held_out_examples() -> None:
    assert len(FOLDERS) >= 6
    assert {folder.name for folder in FOLDERS} == {file.stem for file in HELD_OUT} == set(TASKS)


def test_they_differ_as_real_adapters_do() -> None:
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in FOLDERS]
    assert len({config["r"] for config in configs}) >= 5
    assert len({config["lora_alpha"] for config in configs}) >= 4
    assert len({tuple(sorted(config["target_modules"])) for config in configs}) >= 4
    assert sum(config["use_rslora"] for config in configs) >= 2
    assert any(config["rank_pattern"] for config in configs)
    assert {TASKS[folder.name].dtype for folder in FOLDERS} == {"float32", "float16", "bfloat16"}


@each_adapter
def test_peft_reads_the_config_and_spolia_the_whole_adapter(folder: Path) -> None:
    config = LoraConfig.from_pretrained(folder)
    assert config.base_model_name_or_path == BASE
    assert config.inference_mode
    adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
    assert adapter.obstacles == ()
    assert adapter.dtype == TASKS[folder.name].dtype
    adapter.check_finite()


@each_adapter
def test_every_tensor_is_stored_in_the_precision_of_the_card(folder: Path) -> None:
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        found = {str(weights.get_slice(key).get_dtype()) for key in weights.keys()}  # noqa: SIM118
    assert found == {{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[TASKS[folder.name].dtype]}


@each_adapter
def test_it_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < MOST_BYTES


@each_adapter
def test_the_card_says_what_a_stranger_needs(folder: Path) -> None:
    task = TASKS[folder.name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = card.split("---\n")[1]
    assert f"base_model: {BASE}" in header
    assert f"license: {task.licence.split()[0].lower()}" in header
    assert "library_name: peft" in header
    assert task.source in card
    assert f"python -m examples.train {task.name}" in card
    base, adapter = card_accuracies(folder)
    assert adapter - base >= LEAST_GAIN


@each_file
def test_held_out_lines_are_well_formed_and_unique(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert 200 <= len(lines) <= 300
    assert len({line["prompt"] for line in lines}) == len(lines)
    for line in lines:
        assert set(line) == {"prompt", "label", "labels"}
        assert line["prompt"].endswith("\nAnswer:")
        assert line["label"] in line["labels"]
        assert all(label.startswith(" ") for label in line["labels"])
        assert line["labels"] == lines[0]["labels"]


@each_file
def test_every_label_is_one_token_of_its_own(file: Path, base_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    with file.open(encoding="utf-8") as lines:
        labels = json.loads(next(lines))["labels"]
    tokens = [tokenizer.encode(label, add_special_tokens=False).ids for label in labels]
    assert all(len(one) == 1 for one in tokens)
    assert len({one[0] for one in tokens}) == len(labels)


@pytest.mark.parametrize("name", ["measure", "adjectives", "dates", "intent"])
def test_generated_tasks_give_the_held_out_file_that_ships_and_keep_training_apart(name: str) -> None:
    training, held_out = TASKS[name].examples()
    assert not {one.prompt for one in training} & {one.prompt for one in held_out}
    lines = (EXAMPLES / "heldout" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [one.prompt for one in held_out] == [json.loads(line)["prompt"] for line in lines]
