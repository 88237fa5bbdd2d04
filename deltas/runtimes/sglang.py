"""SGLang: a PEFT folder, copied into a pool whose rank and layers are fixed at the start.

One rank and one scale hold for the whole adapter, and layers that SGLang fuses (q, k, v; gate, up) must come together.
What matches no layer of the pool is skipped unless --lora-strict-loading is on.
"""

from collections.abc import Iterator
from typing import Any

from deltas.architecture import layer_kind
from deltas.departures import (
    beside,
    converted,
    experts,
    inexact,
    renamed,
    several_ranks,
    several_scales,
    unread,
)
from deltas.exporting.gaps import missing_partners
from deltas.runtime import Facts, Finding, Rule, runtime

LORA, CONFIG, POOL = "srt/lora/lora.py", "srt/lora/lora_config.py", "srt/lora/mem_pool.py"
MANAGER, LAYER_NAMES = "srt/lora/lora_manager.py", "srt/utils/common.py"
IN_BLOCKS = frozenset(
    "q_proj k_proj v_proj o_proj qkv_proj gate_proj up_proj down_proj gate_up_proj"
    " q_a_proj kv_a_proj_with_mqa q_b_proj kv_b_proj".split()
)
AT_THE_ENDS = frozenset(("embed_tokens", "lm_head"))

RULES = (
    Rule("readable", "what the adapter computes can be told from its files", CONFIG, None),
    Rule("low-rank", "updates are low-rank; DoRA is refused", MANAGER, None),
    Rule(
        "beside",
        "added tokens are refused, biases taken for factors, modules saved whole skipped",
        f"{MANAGER}, {LORA}",
        None,
    ),
    Rule("experts", "experts of a mixture have several layouts; not written here", POOL, None),
    Rule(
        "layers",
        f"only {', '.join(sorted(IN_BLOCKS))} in numbered blocks, embed_tokens and lm_head are adapted",
        LAYER_NAMES,
        None,
    ),
    Rule("base", "shapes of layers that must be filled follow from the base model, which must be known", LORA, None),
    Rule(
        "partners",
        "a block's q must come with v, k and v with q, up with gate: SGLang fuses them when it loads",
        LORA,
        "the missing one of q, k, v or gate, up gets factors of zeros",
    ),
    Rule("factors", "only lora_A and lora_B are read, of peft_type LORA", LORA, "converted exactly to plain LoRA"),
    Rule(
        "spelling",
        "block, layer and lora_A or lora_B are looked for in each key, as PEFT names them",
        f"{LORA}, {POOL}",
        "keys are spelt as PEFT writes them",
    ),
    Rule(
        "names",
        'target_modules is a list or "all-linear"; a regular expression is refused',
        "srt/lora/utils.py",
        "target_modules become a list",
    ),
    Rule(
        "rank",
        "every module has rank r; rank_pattern is not read",
        POOL,
        "smaller ranks are padded with zeros to one rank",
    ),
    Rule(
        "scale",
        "lora_alpha / r multiplies every layer; rsLoRA and alpha_pattern are not read",
        LORA,
        "the scale goes into the factors, lora_alpha = r",
    ),
)


def settings(facts: Facts, rank: int) -> dict[str, Any]:
    """--enable-lora, --max-lora-rank and --lora-target-modules."""
    return {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": list(facts.suffixes)}


@runtime("sglang", title="SGLang", version="0.5.23", form="peft", fill=missing_partners, rules=RULES, settings=settings)
def sglang(facts: Facts) -> Iterator[Finding]:
    """What SGLang refuses, skips, or takes for something else."""
    if reason := unread(facts):
        yield Finding("readable", reason)
        return
    if reason := inexact(facts):
        yield Finding("low-rank", reason)
    if reason := beside(facts):
        yield Finding("beside", f"{reason}, which SGLang does not take")
    if expert := experts(facts):
        yield Finding(
            "experts", f"'{expert.name}' is an expert of a mixture, whose layout is not written for SGLang here"
        )
    odd = next((info for info in facts.modules if info.kind != "expert" and not _adapted(info.name)), None)
    if odd is not None:
        yield Finding("layers", f"SGLang has no adapters on '{odd.name}'")
    yield from _partners(facts)
    if inexact(facts):
        return  # its ranks and scales are of no factors that the file holds
    if reason := converted(facts):
        yield Finding("factors", reason)
        return
    if reason := renamed(facts):
        yield Finding("spelling", f"{reason}, and SGLang does not find others")
    targets = facts.raw.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        yield Finding("names", "target_modules is a regular expression, which SGLang refuses")
    rank = facts.adapter.config.rank
    if (reason := several_ranks(facts)) or facts.rank != rank:
        yield Finding(
            "rank", f"{reason or f'its modules have rank {facts.rank}, not {rank}'}, and SGLang reads r alone"
        )
    scale = facts.adapter.config.alpha / rank
    if reason := several_scales(facts, scale):
        yield Finding("scale", f"{reason}, and SGLang multiplies every layer by lora_alpha / r = {scale:g}")


def _partners(facts: Facts) -> Iterator[Finding]:
    missing = missing_partners(facts)
    if not missing:
        return
    unknown = [name for name in missing if facts.base is None or name not in facts.base.modules]
    if unknown:
        yield Finding("base", f"'{unknown[0]}' must be adapted too, and its shape is not known here")
    else:
        yield Finding(
            "partners",
            f"'{missing[0]}' ({len(missing)} such) is not adapted, although SGLang fuses it with one that is",
        )


def _adapted(module: str) -> bool:
    suffix = module.rsplit(".", 1)[-1]
    return suffix in AT_THE_ENDS if layer_kind(module) is None else suffix in IN_BLOCKS
