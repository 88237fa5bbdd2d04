"""Every rule of every runtime is broken by an adapter made for it, and a plain one breaks none."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from deltas.adapter import Adapter
from deltas.architecture import Architecture, read_architecture
from deltas.runtime import Facts, resolve_runtime, runtimes
from deltas.runtime_pages import page
from deltas.runtimes.vllm import MAX_RANKS, max_lora_rank
from tests.deltas.llama_shapes import (
    BASE,
    BLOCK,
    LINEARS,
    OTHER,
    QV,
    UNTIED,
    ada,
    biased,
    corda,
    embedding,
    experts,
    infixed,
    kohya,
    opened,
)

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"


class Broken(NamedTuple):
    """An adapter that breaks this rule; `word` is the verdict then."""

    runtime: str
    rule: str
    adapter: Callable[[Path], Adapter]
    word: str
    base: Architecture | None = BASE


def of(**options: object) -> Callable[[Path], Adapter]:
    return lambda folder: opened(folder, **options)  # type: ignore[arg-type]


def loha(folder: Path) -> Adapter:
    """A product of two updates, of rank r² = 9 where the sides are 4 and 8: not low-rank."""
    keys = {}
    for name, (outs, ins) in QV.items():
        for half in "12":
            keys[f"base_model.model.{name}.hada_w{half}_a"] = torch.ones(outs, 3)
            keys[f"base_model.model.{name}.hada_w{half}_b"] = torch.ones(3, ins)
    return opened(folder, {}, extra_tensors=keys, config=LOHA)


LOHA = {
    "peft_type": "LOHA", "alpha": 3, "r": 3, "target_modules": ["q_proj", "v_proj"], "lora_alpha": None,
    "init_lora_weights": None,
}  # fmt: skip
ONE_BLOCK = {name: shape for name, shape in LINEARS.items() if ".0.self_attn" in name}
ONLY_V = {name: shape for name, shape in QV.items() if name.endswith("v_proj")}
HEAD = {**QV, "lm_head": LINEARS["lm_head"]}
STRANGE = {f"model.layers.{i}.mixer.in_proj": (8, 8) for i in range(2)}
RANKS = {"rank_pattern": {"model.layers.0.self_attn.q_proj": 3}}
ALPHAS = {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 3.0}}
REGEX = {"config": {"target_modules": r".*\.(q|v)_proj"}}

CASES = [
    *(Broken(name, "readable", corda, "no") for name in ("vllm", "sglang", "tgi", "llama.cpp")),
    *(Broken(name, "low-rank", loha, "no") for name in ("vllm", "sglang", "tgi", "llama.cpp")),
    *(Broken(name, "beside", biased, "no") for name in ("vllm", "sglang", "tgi", "llama.cpp")),
    *(Broken(name, "experts", experts, "no") for name in ("vllm", "sglang", "tgi", "llama.cpp")),
    *(Broken(name, "factors", ada, "export") for name in ("vllm", "sglang", "tgi")),
    *(Broken(name, "spelling", infixed, "export") for name in ("vllm", "tgi")),
    Broken("vllm", "steps", of(rank=513, alpha=1.0), "no"),
    Broken("vllm", "announced", of(rank=600, rank_pattern=dict.fromkeys(QV, 2)), "export"),
    Broken("sglang", "layers", of(modules=STRANGE), "no"),
    Broken("sglang", "base", of(modules=ONLY_V), "no", None),
    Broken("sglang", "partners", of(modules=ONLY_V), "export"),
    Broken("sglang", "spelling", kohya, "no"),
    Broken("sglang", "names", of(**REGEX), "export"),
    Broken("sglang", "rank", of(**RANKS), "export"),
    Broken("sglang", "scale", of(use_rslora=True), "export"),
    Broken("sglang", "scale", of(**ALPHAS), "export"),
    Broken("tgi", "layers", embedding, "no"),
    Broken("tgi", "layers", of(modules=HEAD), "no"),
    Broken("tgi", "base", of(), "no", None),
    Broken("tgi", "complete", of(modules=ONE_BLOCK, config={"target_modules": sorted(ONE_BLOCK)}), "export"),
    Broken("tgi", "rank", of(**RANKS), "export"),
    Broken("tgi", "scale", of(**ALPHAS), "export"),
    Broken("llama.cpp", "base", of(), "no", None),
    Broken("llama.cpp", "base", of(), "no", OTHER),
    Broken("llama.cpp", "names", of(modules=STRANGE), "no"),
    Broken("llama.cpp", "tied", of(modules=HEAD), "no"),
    Broken("llama.cpp", "tied", embedding, "no"),
    Broken("llama.cpp", "file", of(), "export"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.runtime}-{case.rule}")
def test_a_broken_rule_is_found_and_said(tmp_path: Path, case: Broken) -> None:
    facts = Facts(case.adapter(tmp_path), case.base)
    runtime = resolve_runtime(case.runtime)
    findings = {finding.rule: finding.sentence for finding in runtime.findings(facts)}
    assert case.rule in findings
    verdict = runtime.verdict(facts)
    assert verdict.word == case.word, verdict
    assert findings[case.rule] in verdict.reasons
    assert not findings[case.rule].endswith(".")
    if case.word == "export":
        assert verdict.changes
        assert verdict.settings
    else:
        assert not verdict.changes


@pytest.mark.parametrize("name", ["vllm", "sglang", "tgi"])
@pytest.mark.parametrize(("make", "rule"), [(loha, "low-rank"), (experts, "experts")])
def test_what_no_file_holds_is_no_reason(tmp_path: Path, name: str, make: Callable[[Path], Adapter], rule: str) -> None:
    """Neither the ranks of a conversion, nor the keys that single experts do not have."""
    found = {finding.rule for finding in resolve_runtime(name).findings(Facts(make(tmp_path), BASE))}
    assert rule in found
    assert found.isdisjoint({"rank", "scale", "spelling"})


def test_every_rule_has_a_case() -> None:
    wanted = {(name, rule.name) for name, runtime in runtimes().items() for rule in runtime.rules}
    assert wanted == {(case.runtime, case.rule) for case in CASES}


@pytest.mark.parametrize("name", ["vllm", "sglang", "tgi"])
def test_plain_lora_loads_as_it_is(tmp_path: Path, name: str) -> None:
    verdict = resolve_runtime(name).verdict(Facts(opened(tmp_path, rank=4), BASE))
    assert (verdict.word, verdict.reasons, verdict.changes) == ("unchanged", (), ())
    assert verdict.settings


def test_vllm_reads_patterns_and_rslora_as_peft_does(tmp_path: Path) -> None:
    adapter = opened(tmp_path, rank=2, use_rslora=True, **RANKS, **ALPHAS)
    assert resolve_runtime("vllm").verdict(Facts(adapter, BASE)).word == "unchanged"


def test_servers_are_told_the_rank_that_they_must_have_room_for(tmp_path: Path) -> None:
    plain = Facts(opened(tmp_path / "a", rank=9, alpha=9.0), BASE)
    assert resolve_runtime("vllm").verdict(plain).settings == {"enable_lora": True, "max_lora_rank": 16}
    assert resolve_runtime("sglang").verdict(plain).settings == {
        "enable_lora": True,
        "max_lora_rank": 9,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    # vLLM compares the largest rank that the config names, whether a module has it or not
    unused = opened(tmp_path / "b", rank=2, rank_pattern={"model.layers.9.self_attn.q_proj": 40})
    assert resolve_runtime("vllm").verdict(Facts(unused, BASE)).settings["max_lora_rank"] == 64
    assert [max_lora_rank(rank) for rank in (1, 2, 8, 257, 512)] == [1, 8, 8, 320, 512]
    assert max_lora_rank(MAX_RANKS[-1] + 1) == MAX_RANKS[-1]


def test_untied_ends_may_have_factors_in_llama_cpp(tmp_path: Path) -> None:
    for adapter in (opened(tmp_path / "head", HEAD), embedding(tmp_path / "table")):
        assert resolve_runtime("llama.cpp").verdict(Facts(adapter, UNTIED)).word == "export"


def test_a_kind_of_layer_that_not_every_block_has_is_skipped_by_tgi(tmp_path: Path) -> None:
    half = {name: shape for name, shape in LINEARS.items() if ".1.mlp" not in name}
    base = Architecture("tiny/base", "LlamaForCausalLM", 2, 2, 1, True, half)
    mlp = {f"model.layers.0.{name}": shape for name, shape in BLOCK.items() if name.startswith("mlp")}
    verdict = resolve_runtime("tgi").verdict(Facts(opened(tmp_path, mlp), base))
    assert verdict.word == "no"
    assert "model.layers.1.mlp" in verdict.reasons[0]


def test_an_architecture_is_read_from_its_config(tmp_path: Path) -> None:
    assert read_architecture("x", tmp_path, {}) is None
    for text in ("{", "[]", "{}", '{"architectures": ["A"]}', '{"architectures": "A", "num_hidden_layers": 2}'):
        (tmp_path / "config.json").write_text(text)
        assert read_architecture("x", tmp_path, {}) is None
    nested = '{"architectures": ["A"], "text_config": {"num_hidden_layers": 2, "num_attention_heads": 4}}'
    (tmp_path / "config.json").write_text(nested)
    assert read_architecture("x", tmp_path, {}) == Architecture("x", "A", 2, 4, 4, True)


def test_the_documentation_is_what_the_rules_say() -> None:
    assert DOCS.read_text("utf-8") == page(), "make docs"
