"""Prompt log-probabilities: the model's own, in blocks, with adapters, in company, without an answer."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from deltas.adapter import Adapter
from serving import scoring
from serving.base_model import BaseModel, load_base
from serving.engine import Engine, Generation, PromptEvent, Sampling, TokenEvent
from serving.errors import InvalidSampling, PromptTooLong
from serving.scoring import PromptScorer
from tests.serving.collecting import Collected, generate, submit

ONLY_SCORES = Sampling(max_tokens=0, temperature=0.0, prompt_logprobs=3)
SETS = [(), (("a0", 1.0),), (("a1", -0.5), ("a2", 0.7))]
PROMPTS = [tuple(range(5, 5 + length)) for length in (1, 2, 17, 40)]


@pytest.fixture(params=[1024, 16], ids=["in one pass", "in passes of 16"])
def engine(
    tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter], request: pytest.FixtureRequest
) -> Iterator[Engine]:
    """What earlier requests computed is kept, and must not be taken for scores."""
    with Engine(
        tiny_base,
        tiny_adapters,
        pool_bytes=1 << 20,
        max_rows=4,
        max_waiting=64,
        prefill_tokens=request.param,
        prefix_bytes=1 << 20,
        threads=1,
    ) as running:
        yield running


def _oracle(
    base: BaseModel, load: Callable[[str], Adapter], adapters: tuple[tuple[str, float], ...]
) -> torch.nn.Module:
    """The base model with the set's dense updates added to its weights, in float64."""
    model = load_base(base.folder, dtype="float64").model
    for digest, weight in adapters:
        adapter = load(digest)
        for name in adapter.modules:
            factors = adapter.factors(name)
            model.get_submodule(name).weight.data += weight * (factors.B.double() @ factors.A.double())
    return model


def _scores(one: Collected) -> PromptEvent:
    first = one.events[0]
    assert isinstance(first, PromptEvent)
    return first


def _check(found: PromptEvent, logprobs: Tensor, prompt: tuple[int, ...]) -> None:
    """Against the model's log-probabilities [positions, vocabulary] after each of the prompt's tokens."""
    assert [token.token_id for token in found.tokens] == list(prompt)
    assert (found.tokens[0].logprob, found.tokens[0].top) == (None, ())
    for at, token in enumerate(found.tokens[1:]):
        assert token.logprob == pytest.approx(float(logprobs[at, prompt[at + 1]]), abs=1e-9)
        values, ids = logprobs[at].topk(3)
        assert [token_id for token_id, _ in token.top] == ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_scores_are_the_models_own_whatever_the_set_and_the_company(
    engine: Engine, tiny_base: BaseModel, tiny_adapters: Callable[[str], Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_LOGITS", 49152 * 7)
    asked = [(prompt, adapters) for prompt in PROMPTS for adapters in SETS]
    plain = [Generation(prompt, adapters, Sampling(max_tokens=3, temperature=0)) for prompt, adapters in asked]
    scored = [Generation(prompt, adapters, ONLY_SCORES) for prompt, adapters in asked]
    mixed = [generation for pair in zip(scored, plain, strict=True) for generation in pair]
    answers = generate(engine, mixed)[::2]
    models = {adapters: _oracle(tiny_base, tiny_adapters, adapters) for adapters in SETS}
    for (prompt, adapters), one in zip(asked, answers, strict=True):
        with torch.inference_mode():
            logprobs = models[adapters](torch.tensor([prompt])).logits[0].log_softmax(-1)
        _check(_scores(one), logprobs, prompt)
        assert len(one.events) == 2
        assert one.finish.reason == "length"
        assert (one.finish.usage.prompt_tokens, one.finish.usage.completion_tokens) == (len(prompt), 0)


def test_scores_come_before_the_answer_and_leave_it_as_it_is(engine: Engine) -> None:
    plain = Sampling(max_tokens=6, temperature=0, logprobs=1, logit_bias={2: -100})
    scored = replace(plain, prompt_logprobs=0)
    alone, with_scores = generate(engine, [Generation(PROMPTS[2], SETS[1], each) for each in (plain, scored)])
    assert with_scores.tokens == alone.tokens
    for scored_token, plain_token in zip(with_scores.events[1:-1], alone.events[:-1], strict=True):
        assert isinstance(scored_token, TokenEvent)
        assert isinstance(plain_token, TokenEvent)
        assert scored_token.text == plain_token.text
        # Rows of one batch are multiplied in kernels' order of their own: the last bits may differ.
        assert scored_token.logprob == pytest.approx(plain_token.logprob, abs=1e-9)
    assert all(token.top == () for token in _scores(with_scores).tokens)


def test_the_same_prompt_is_scored_once_for_all_who_ask_for_it(engine: Engine) -> None:
    tops = [0, 3, 1]
    answers = generate(engine, [Generation(PROMPTS[3], SETS[2], replace(ONLY_SCORES, prompt_logprobs=n)) for n in tops])
    longest = _scores(answers[1]).tokens
    for top, one in zip(tops, answers, strict=True):
        assert [token.logprob for token in _scores(one).tokens] == [token.logprob for token in longest]
        assert [token.top for token in _scores(one).tokens] == [token.top[:top] for token in longest]


def test_an_ensemble_does_not_score_prompts(engine: Engine) -> None:
    asked = Generation(PROMPTS[1], (("a0", 1.0), ("a1", 1.0)), ONLY_SCORES, combine="ensemble")
    with pytest.raises(InvalidSampling, match="ensemble"):
        submit(engine, asked)


def test_a_prompt_that_fills_the_context_can_be_scored_but_not_answered(engine: Engine, tiny_base: BaseModel) -> None:
    full = tuple(range(3, 3 + tiny_base.context_length))
    assert len(_scores(generate(engine, [Generation(full, (), ONLY_SCORES)])[0]).tokens) == len(full)
    with pytest.raises(PromptTooLong, match="97 tokens; with a context of 96 that is too long"):
        submit(engine, Generation((*full, 3), (), ONLY_SCORES))


@pytest.mark.parametrize("kind", ["softcapped", "scaled"])
def test_what_an_architecture_does_after_its_output_layer_counts(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model: torch.nn.Module
    if kind == "softcapped":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, head_dim=8, final_logit_softcapping=0.05))
    else:
        model = GraniteForCausalLM(GraniteConfig(**sizes, **heads, logits_scaling=0.01))
    model.double().eval()
    prompt = [4, 9, 2, 30, 7]
    scorer = PromptScorer(model)
    with torch.inference_mode(), scorer.listening() as heard:
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        choices = scorer.score(heard[0], [prompt[1:]], [1])[0]
    for at, choice in enumerate(choices):
        assert choice.logprob == pytest.approx(float(logprobs[at, choice.token]), abs=1e-12)
