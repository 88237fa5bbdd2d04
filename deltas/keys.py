"""The spellings of checkpoint keys, and the module that each belongs to.

PEFT writes `base_model.model.<module>.lora_A.weight`; with its adapter-name infix `lora_A.default.weight`;
transformers, Unsloth and Axolotl write the same, sometimes with wrapper names of torch.compile, FSDP or activation
checkpointing in the path. Whatever is not a LoRA factor gets a sentence that names it, so that nothing is dropped in
silence.
"""

import re
from typing import NamedTuple

PREFIXES = ("base_model.model.", "base_model.")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.(?!weight$)[^.]+)?\.weight$")
# What is not a factor: (pattern of the key's end, what it is). The first match names it.
OTHERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_magnitude_vector(\..+)?$"), "a DoRA magnitude"),
    (re.compile(r"\.lora_embedding_[AB](\..+)?$"), "a factor of an embedding"),
    (re.compile(r"\.lora_[AB](\..+)?\.bias$"), "a bias of a LoRA factor (lora_bias)"),
    (re.compile(r"\.lora_diag(\..+)?$"), "a KaSA diagonal"),
    (re.compile(r"\.(lora_E|ranknum)(\..+)?$"), "an AdaLoRA singular value"),
    (re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\."),
     "a leftover of a quantised base"),
    (re.compile(r"\.base_layer\."), "a copy of the base layer"),
    (re.compile(r"\.modules_to_save\."), "a module saved whole (modules_to_save)"),
    (re.compile(r"\.token_adapter\.|trainable_tokens"), "retrained token embeddings"),
    (re.compile(r"\.bias$"), "a trained bias"),
    (re.compile(r"\.weight$"), "a weight saved whole (modules_to_save or a resized embedding)"),
)  # fmt: skip


class FactorKey(NamedTuple):
    """A key that holds one side of a module's factors."""

    module: str
    side: str  # "A" or "B"


def parse_factor_key(key: str) -> FactorKey | None:
    """The module and side of a LoRA factor's key, or None for any other key."""
    match = FACTOR.match(key)
    return FactorKey(module_path(match["module"]), match["side"]) if match else None


def module_path(path: str) -> str:
    """The module's path in the base model, without PEFT's prefix and without wrappers."""
    for prefix in PREFIXES:
        if path.startswith(prefix):
            path = path.removeprefix(prefix)
            break
    for wrapper in WRAPPERS:
        path = path.replace(wrapper, "")
    return path


def describe_other_key(key: str) -> str | None:
    """What a key that is no LoRA factor holds, or None when it is of no known kind."""
    return next((what for pattern, what in OTHERS if pattern.search(key)), None)
