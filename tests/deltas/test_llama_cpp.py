"""A real llama.cpp (the one in xllamacpp) with our exports: it answers as the adapters were trained to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import xllamacpp
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltas.adapter import Adapter
from deltas.architecture import read_architecture
from deltas.base_folder import read_card
from deltas.exporting.export import export_for
from serving.base_model import DEFAULT_BASE
from serving.bundled import bundled_file

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = ("adjectives", "dates")  # rsLoRA of rank 2 on all linear layers; alpha 32 and rank 16 on q and v
EACH = 3
Example = Mapping[str, Any]


@pytest.fixture(scope="module")
def llama(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> xllamacpp.Server:
    """llama.cpp on the bundled GGUF file, with an export of each task's adapter."""
    room, file = tmp_path_factory.mktemp("gguf"), bundled_file(DEFAULT_BASE)
    modules = {name: (sides[0], sides[1]) for name, sides in read_card(base_folder)["modules"].items()}
    base = read_architecture(DEFAULT_BASE, base_folder, modules)
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 1024, 1, 0
    params.warmup, params.verbosity, params.cpuparams.n_threads = False, -1, 1
    exports = []
    for task in TASKS:
        folder = EXAMPLES / "adapters" / task
        adapter = Adapter.open(folder / "adapter_config.json", folder / "adapter_model.safetensors")
        made = export_for(adapter, "llama.cpp", room / task, base=base)
        exports.append(xllamacpp.CommonAdapterLoraInfo(str(made.folder / made.files[0]), 1.0))
    params.lora_adapters = exports
    return xllamacpp.Server(params)


@pytest.fixture(scope="module")
def peft_model(base_folder: Path) -> Any:
    """The same base, dequantised, with the adapters as PEFT loads the originals."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, EXAMPLES / "adapters" / TASKS[0], adapter_name=TASKS[0])
    for task in TASKS[1:]:
        model.load_adapter(EXAMPLES / "adapters" / task, adapter_name=task)
    return model.eval()


def held_out(task: str) -> Sequence[Example]:
    with (EXAMPLES / "heldout" / f"{task}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(EACH), strict=False)]


def by_llama(server: xllamacpp.Server, ids: list[int], task: str | None) -> Mapping[int, float]:
    """Log-probabilities of the likeliest next tokens, by token."""
    adapters = [{"id": index, "scale": float(name == task)} for index, name in enumerate(TASKS)]
    ask = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 300, "cache_prompt": False, "lora": adapters}
    answer = server.handle_completions(ask)
    tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["id"]: token["logprob"] for token in tokens}


@pytest.mark.parametrize("task", TASKS)
def test_llama_cpp_answers_as_the_adapter_was_trained_to(
    llama: xllamacpp.Server, peft_model: Any, base_folder: Path, task: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    peft_model.set_adapter(task)
    right = 0
    for example in held_out(task):
        ids = tokenizer(example["prompt"]).input_ids
        firsts = {label: tokenizer(label).input_ids[0] for label in example["labels"]}
        plain, adapted = by_llama(llama, ids, None), by_llama(llama, ids, task)
        with torch.no_grad():
            expected = torch.log_softmax(peft_model(torch.tensor([ids])).logits[0, -1].double(), -1)
        right += max(firsts, key=lambda label: adapted.get(firsts[label], -1e9)) == example["label"]
        # llama.cpp rounds activations to 8 bits and keys and values to 16: compared as probabilities, not digits
        for token in sorted(adapted, key=lambda token: adapted[token])[-5:]:
            ours = float(expected[token].exp())
            assert torch.tensor(adapted[token]).exp().item() == pytest.approx(ours, abs=0.1)
        answer = firsts[example["label"]]
        assert adapted[answer] > plain.get(answer, min(plain.values()))
    assert right == EACH
