"""vLLM: a PEFT folder, loaded at the start or while it runs; ranks up to `--max-lora-rank`, which has steps.

Modules are looked up by the ends of their names: one whose path the model does not have is left out without a word. So
a verdict presumes that the adapter fits its base model, which is checked at upload where the base is known.
"""

from collections.abc import Iterator
from typing import Any

from deltas.departures import beside, converted, experts, inexact, misspelt, unread
from deltas.runtime import Facts, Finding, Rule, runtime

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CONFIG, TENSORS, HELPER = "vllm/config/lora.py", "vllm/lora/utils.py", "vllm/lora/peft_helper.py"

RULES = (
    Rule("readable", "what the adapter computes can be told from its files", HELPER, None),
    Rule("low-rank", "updates are low-rank; DoRA is refused", HELPER, None),
    Rule(
        "beside",
        "biases, lora_bias, retrained tokens and modules saved whole are refused (a classifier's head apart, which"
        " is not judged here)",
        HELPER,
        None,
    ),
    Rule(
        "experts",
        "experts of a mixture are loaded in layouts that the request must declare; not written here",
        "vllm/lora/lora_model.py",
        None,
    ),
    Rule(
        "steps",
        f"ranks go up to {MAX_RANKS[-1]} (max_rank cuts larger ones); --max-lora-rank is one of"
        f" {', '.join(map(str, MAX_RANKS))}",
        CONFIG,
        None,
    ),
    Rule(
        "announced",
        "r and rank_pattern count as far as the config names them, whether a module has that rank or not",
        HELPER,
        "the config names the ranks that its modules have",
    ),
    Rule(
        "factors",
        "only lora_A and lora_B are read; starts that changed the base weight (PiSSA, OLoRA, …) are refused",
        HELPER,
        "converted exactly to plain LoRA",
    ),
    Rule("spelling", "keys end in lora_A.weight or lora_B.weight", TENSORS, "keys are spelt as PEFT writes them"),
)


def max_lora_rank(rank: int) -> int:
    """The smallest value that --max-lora-rank can have for an adapter of this rank; at most the largest there is."""
    return next((step for step in MAX_RANKS if step >= rank), MAX_RANKS[-1])


def settings(facts: Facts, rank: int) -> dict[str, Any]:
    """--enable-lora and --max-lora-rank."""
    return {"enable_lora": True, "max_lora_rank": max_lora_rank(rank)}


@runtime("vllm", title="vLLM", version="0.32.0", form="peft", rules=RULES, settings=settings)
def vllm(facts: Facts) -> Iterator[Finding]:
    """What vLLM refuses. Ranks, alphas, rsLoRA and patterns are read as PEFT reads them."""
    if reason := unread(facts):
        yield Finding("readable", reason)
        return
    if reason := inexact(facts):
        yield Finding("low-rank", reason)
    if reason := beside(facts):
        yield Finding("beside", f"{reason}, which vLLM refuses")
    if expert := experts(facts):
        yield Finding("experts", f"'{expert.name}' is an expert, which is not written for vLLM here")
    if facts.rank > MAX_RANKS[-1]:
        yield Finding(
            "steps",
            f"its rank {facts.rank} is above {MAX_RANKS[-1]}, vLLM's largest; an export with max_rank cuts it, with the"
            " energy lost stated",
        )
    elif facts.announced_rank > MAX_RANKS[-1]:
        yield Finding(
            "announced",
            f"its config names rank {facts.announced_rank}, above {MAX_RANKS[-1]}, vLLM's largest, although its modules"
            f" have no more than {facts.rank}",
        )
    if reason := converted(facts):
        yield Finding("factors", reason)
    elif reason := misspelt(facts):
        yield Finding("spelling", f"{reason}, and vLLM refuses other keys")
