"""On the real model, PEFT and transformers say what is right: adapters saved by PEFT, log-probabilities to 1e-4."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM

from deltas.adapter import Adapter
from serving.base_model import BaseModel, load_base
from serving.engine import Engine, Generation, Sampling, TokenEvent
from tests.serving.collecting import generate

CONFIGS = {
    "qv": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    "qv-negative": LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]),
    "all-rslora": LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    "patterns": LoraConfig(
        r=4, lora_alpha=6, target_modules=["k_proj", "o_proj", "down_proj"],
        rank_pattern={"layers.3.self_attn.k_proj": 9, "down_proj": 2}, alpha_pattern={"layers.7.mlp.down_proj": 1},
    ),
    "some-layers": LoraConfig(
        r=2, lora_alpha=32, target_modules=["gate_proj", "up_proj"], layers_to_transform=[0, 13, 29]
    ),
}  # fmt: skip
SETS: list[tuple[tuple[str, float], ...]] = [
    *(((name, 1.0),) for name in CONFIGS),
    (),
    (("qv", 0.5), ("all-rslora", -0.7), ("some-layers", 1.3)),
    (("patterns", 2.0), ("qv-negative", -1.0)),
]
CHATS = ["What is the capital of France?", "Count from one to ten.", "Name three colours, please, and say why.", "Hi!"]


@dataclass
class Oracle:
    """A PEFT model that holds every adapter, on a base of its own."""

    model: PeftModel

    @contextmanager
    def merged(self, one: Sequence[tuple[str, float]]) -> Iterator[Any]:
        """The bare transformers model with the set's dense updates, as PEFT computes them, added to its weights."""
        layers = [part for part in self.model.modules() if isinstance(part, LoraLayer)]
        kept = [layer.get_base_layer().weight.data for layer in layers]
        for layer, weight in zip(layers, kept, strict=True):
            changed = weight.clone()
            for name, share in one:
                if name in layer.lora_A:
                    changed += share * layer.get_delta_weight(name)
            layer.get_base_layer().weight.data = changed
        try:
            with torch.no_grad(), self.model.disable_adapter():
                yield self.model.base_model.model
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data = weight


@pytest.fixture(scope="module")
def oracle(base_folder: Path) -> Oracle:
    torch.manual_seed(0)
    model: Any = None
    for name, config in CONFIGS.items():
        if model is None:
            base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).requires_grad_(False)
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    return Oracle(model.eval())


@pytest.fixture(scope="module")
def saved(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    oracle.model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseModel:
    return load_base(base_folder)


@pytest.fixture(scope="module")
def engine(base: BaseModel, saved: Path) -> Iterator[Engine]:
    def load(name: str) -> Adapter:
        return Adapter.open(saved / name / "adapter_config.json", saved / name / "adapter_model.safetensors")

    with Engine(base, load, pool_bytes=1 << 28, max_rows=8, max_waiting=64, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(base: BaseModel) -> list[tuple[int, ...]]:
    chats = [[{"role": "user", "content": text}] for text in CHATS]
    return [tuple(base.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]


def _expected(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Log-probabilities [answer, vocabulary] of what follows the prompt, in one pass without cache."""
    logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def test_all_sets_in_one_batch_have_the_log_probabilities_of_peft(
    engine: Engine, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    sampling = Sampling(max_tokens=5, temperature=0.0, logit_bias={2: -100.0}, logprobs=20)
    generations = [Generation(prompts[at % len(prompts)], one, sampling) for at, one in enumerate(SETS)]
    seen = []
    for generation, answer in zip(generations, generate(engine, generations), strict=True):
        with oracle.merged(generation.adapters) as model:
            expected = _expected(model, generation.prompt_ids, answer.tokens)
        assert len(answer.tokens) == 5
        for event, row in zip(answer.events, expected, strict=False):
            assert isinstance(event, TokenEvent)
            assert event.logprob == pytest.approx(float(row[event.token_id]), abs=2e-4)
            for token, logprob in event.top:
                assert logprob == pytest.approx(float(row[token]), abs=2e-4)
        seen.append(expected[0])
    same_prompt = [seen[0], seen[4]]
    assert (same_prompt[0] - same_prompt[1]).abs().max() > 0.1, "the adapters must make a difference to be a test"


@pytest.mark.parametrize("name", ["qv", "all-rslora", "patterns"])
def test_one_adapter_is_what_peft_serves(
    engine: Engine, oracle: Oracle, prompts: list[tuple[int, ...]], name: str
) -> None:
    sampling = Sampling(max_tokens=1, temperature=0.0, logprobs=20)
    answers = generate(engine, [Generation(prompt, ((name, 1.0),), sampling) for prompt in prompts])
    oracle.model.set_adapter(name)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            expected = oracle.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        event = answer.events[0]
        assert isinstance(event, TokenEvent)
        assert dict(event.top) == pytest.approx({token: float(expected[token]) for token, _ in event.top}, abs=2e-4)


def test_a_weighted_set_is_what_pefts_cat_serves(
    engine: Engine, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    weights = {"qv": 0.8, "qv-negative": 0.4}
    oracle.model.add_weighted_adapter(list(weights), list(weights.values()), "cat", combination_type="cat")
    oracle.model.set_adapter("cat")
    sampling = Sampling(max_tokens=1, temperature=0.0, logprobs=20)
    answers = generate(engine, [Generation(prompt, tuple(weights.items()), sampling) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            expected = oracle.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        event = answer.events[0]
        assert isinstance(event, TokenEvent)
        assert dict(event.top) == pytest.approx({token: float(expected[token]) for token, _ in event.top}, abs=2e-4)
    oracle.model.set_adapter("qv")
    oracle.model.delete_adapter("cat")


def test_greedy_text_is_that_of_transformers(
    engine: Engine, base: BaseModel, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    ends = generate(engine, [Generation(prompt, (), Sampling(max_tokens=16, temperature=0.0)) for prompt in prompts])
    with oracle.merged(()) as model:
        for prompt, answer in zip(prompts, ends, strict=True):
            output = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[
                0, len(prompt) :
            ].tolist()
            ended = output[-1] in base.eos_ids
            assert answer.tokens == (output[:-1] if ended else output)
            assert answer.finish.reason == ("stop" if ended else "length")
            assert answer.finish.usage.completion_tokens == len(output)
            assert answer.text == base.tokenizer.decode(output, skip_special_tokens=True)


def test_a_seed_gives_the_same_text_in_any_company(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=11)
    mine = Generation(prompts[2], SETS[6], sampling)
    company = [Generation(prompt, SETS[at], Sampling(max_tokens=4 + at)) for at, prompt in enumerate(prompts)]
    alone = generate(engine, [mine])[0]
    assert generate(engine, [*company, mine])[-1].tokens == alone.tokens
    assert (
        generate(
            engine, [Generation(prompts[2], SETS[6], Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=12))]
        )[0].tokens
        != alone.tokens
    )
