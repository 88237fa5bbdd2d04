"""Text Generation Inference: adapters named at the start, one scale for all layers, kinds of layers all or nothing.

What TGI does not know it skips with a line in its log, so everything that it would skip breaks a rule here. Read from
huggingface/text-generation-inference, folder server/text_generation_server.
"""

import math
from collections.abc import Iterator
from typing import Any

from deltas.architecture import layer_kind
from deltas.departures import (
    beside,
    converted,
    embeddings,
    experts,
    inexact,
    misspelt,
    several_ranks,
    several_scales,
    unread,
)
from deltas.exporting.gaps import missing_blocks
from deltas.runtime import Facts, Finding, Rule, runtime

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "c_proj", "c_fc")
PLACES = ("model.layers.{}.self_attn", "model.layers.{}.mlp")
LOADING, LORA, LOOKUP = "models/__init__.py", "adapters/lora.py", "utils/adapter.py"

RULES = (
    Rule("readable", "what the adapter computes can be told from its files", LORA, None),
    Rule("low-rank", "updates are low-rank; a DoRA magnitude is skipped", LORA, None),
    Rule("beside", "biases, modules saved whole and added tokens are skipped", LOOKUP, None),
    Rule("experts", "experts of a mixture are skipped", LOADING, None),
    Rule(
        "layers",
        "only q, k, v, o, gate, up, down, c_fc, c_proj and fused qkv of `model.layers.N` are adapted; all else is"
        " skipped, embeddings and lm_head too",
        f"{LOADING}, {LOOKUP}",
        None,
    ),
    Rule("base", "the number of blocks must be known, to see whether any is left out", LORA, None),
    Rule(
        "complete",
        "a kind of layer that is not adapted in every block is skipped in all",
        LORA,
        "blocks that are left out get factors of zeros",
    ),
    Rule("factors", "only lora_A and lora_B are read", LORA, "converted exactly to plain LoRA"),
    Rule(
        "spelling",
        "keys are `base_model.model.<path>.lora_A.weight`, letter by letter",
        LORA,
        "keys are spelt as PEFT writes them",
    ),
    Rule(
        "rank",
        "a kind of layer has one rank in all blocks: their factors are stacked",
        LORA,
        "smaller ranks are padded with zeros to one rank",
    ),
    Rule(
        "scale",
        "lora_alpha / r (rsLoRA: lora_alpha / √r) multiplies every layer; patterns are not read",
        LORA,
        "the scale goes into the factors, lora_alpha = r",
    ),
)


def settings(facts: Facts, rank: int) -> dict[str, Any]:
    """The environment variable that names the folder on the server."""
    return {"LORA_ADAPTERS": "name=/path/of/the/folder"}


@runtime(
    "tgi", title="TGI", version="3.3.7 (db931fcf)", form="peft", fill=missing_blocks, rules=RULES, settings=settings
)
def tgi(facts: Facts) -> Iterator[Finding]:
    """What TGI would skip, or take for something else."""
    if reason := unread(facts):
        yield Finding("readable", reason)
        return
    if reason := inexact(facts):
        yield Finding("low-rank", reason)
    if reason := beside(facts):
        yield Finding("beside", f"{reason}, which TGI skips")
    if expert := experts(facts):
        yield Finding("experts", f"'{expert.name}' is an expert of a mixture, which TGI skips")
    odd = next((info for info in facts.modules if info.kind == "linear" and not _adapted(info.name)), embeddings(facts))
    if odd is not None:
        yield Finding("layers", f"TGI has no adapters on '{odd.name}' and skips its factors")
    yield from _blocks(facts)
    if inexact(facts):
        return  # its ranks and scales are of no factors that the file holds
    if reason := converted(facts):
        yield Finding("factors", reason)
        return
    if reason := misspelt(facts):
        yield Finding("spelling", f"{reason}, and TGI skips other keys")
    if reason := several_ranks(facts):
        yield Finding("rank", f"{reason}, and TGI stacks a layer's factors of all blocks")
    config = facts.adapter.config
    scale = config.alpha / (math.sqrt(config.rank) if config.use_rslora else config.rank)
    if reason := several_scales(facts, scale):
        yield Finding("scale", f"{reason}, and TGI multiplies every layer by {scale:g}")


def _blocks(facts: Facts) -> Iterator[Finding]:
    if facts.base is None:
        yield Finding(
            "base",
            "TGI skips a kind of layer that is not adapted in every block, and how many blocks the base model has is"
            " not known here",
        )
        return
    missing = missing_blocks(facts)
    absent = next((name for name in missing if name not in facts.base.modules), None)
    if absent is not None:
        yield Finding("layers", f"the base model has no '{absent}', and TGI skips layers that not every block has")
    elif missing:
        yield Finding(
            "complete",
            f"'{missing[0]}' ({len(missing)} such) is not adapted although other blocks' are, so TGI would skip all",
        )


def _adapted(module: str) -> bool:
    placed = layer_kind(module)
    if placed is None:
        return False
    place, _, suffix = placed[0].rpartition(".")
    return suffix in LAYERS and place in PLACES
