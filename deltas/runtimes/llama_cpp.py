"""llama.cpp: one GGUF file, tensors by llama.cpp's own names, one alpha for all.

Read from ggml-org/llama.cpp.
"""

from collections.abc import Iterator
from typing import Any

from deltas.departures import beside, embeddings, experts, inexact, unread
from deltas.exporting.gguf_file import FILE
from deltas.exporting.gguf_names import CONVERTED, tensor_names
from deltas.runtime import Facts, Finding, Rule, runtime

LOADER, CONVERTER = "src/llama-adapter.cpp", "convert_lora_to_gguf.py"

RULES = (
    Rule("readable", "what the adapter computes can be told from its files", CONVERTER, None),
    Rule("low-rank", "updates are low-rank", LOADER, None),
    Rule("beside", "other tensors than factors are refused, norms ignored", LOADER, None),
    Rule(
        "experts",
        "experts are stacked as their architecture's converter does it, which is not done here",
        CONVERTER,
        None,
    ),
    Rule(
        "base",
        "names and the order of rows follow from the base model's architecture, which must be known",
        "conversion/",
        None,
    ),
    Rule("names", "every tensor must exist in the base model's file", LOADER, None),
    Rule(
        "tied",
        "a matrix that embedding and output layer share exists once, under one name; factors on it are refused, or have"
        " the wrong shape at the other end",
        f"{CONVERTER}, src/llama-graph.cpp",
        None,
    ),
    Rule(
        "file",
        "adapters are GGUF files: lora_a and lora_b under llama.cpp's names, rows of query and key weights in its"
        " order, one alpha that each pair's own rank divides",
        "src/llama-adapter.h, conversion/llama.py",
        "written as GGUF: scales go into the factors, names and the order of rows are llama.cpp's",
    ),
)


def settings(facts: Facts, rank: int) -> dict[str, Any]:
    """The flag of llama-server and llama-cli."""
    return {"lora": FILE}


@runtime(
    "llama.cpp",
    title="llama.cpp",
    version="2026-10 (in llama-cpp-python 0.3.36)",
    form="gguf",
    rules=RULES,
    settings=settings,
)
def llama_cpp(facts: Facts) -> Iterator[Finding]:
    """What a LoRA file of llama.cpp cannot say; that it must be such a file is always found."""
    if reason := unread(facts):
        yield Finding("readable", reason)
        return
    if reason := inexact(facts):
        yield Finding("low-rank", reason)
    if reason := beside(facts):
        yield Finding("beside", f"{reason}, which llama.cpp does not take")
    if expert := experts(facts):
        yield Finding("experts", f"'{expert.name}' is an expert of a mixture, which is not written as GGUF here")
    yield from _names(facts)
    yield Finding("file", "llama.cpp reads GGUF, not safetensors")


def _names(facts: Facts) -> Iterator[Finding]:
    base = facts.base
    if base is None:
        yield Finding(
            "base",
            "llama.cpp's names and order of rows follow from the base model's architecture, which is not known here",
        )
        return
    if base.kind not in CONVERTED:
        known = ", ".join(CONVERTED)
        yield Finding("base", f"how llama.cpp's converter writes a {base.kind} is not known here; known are {known}")
        return
    names = tensor_names(base)
    layers = [info for info in facts.modules if info.kind != "expert"]
    unknown = next((info.name for info in layers if info.name not in names), None)
    if unknown is not None:
        yield Finding("names", f"llama.cpp has no tensor for '{unknown}' of a {base.kind}")
    head = next((info for info in layers if names.get(info.name) == "output.weight"), None)
    shared = embeddings(facts) or head
    if base.tied and shared is not None:
        yield Finding(
            "tied",
            f"'{shared.name}' shares its matrix with the other end of the model; llama.cpp keeps it once and cannot"
            " adapt one end alone",
        )
