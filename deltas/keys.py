"""The spellings of checkpoint keys, and the module that each belongs to.

PEFT writes `base_model.model.<module>.lora_A.weight`; with its adapter-name infix `lora_A.default.weight`;
transformers, Unsloth and Axolotl write the same, sometimes with wrapper names of torch.compile, FSDP or activation
checkpointing in the path. What is neither a factor nor one of the extras of `extras.py` gets a sentence that names it,
so that nothing is dropped in silence.
"""

import re
from functools import cache
from typing import NamedTuple

PREFIXES = ("base_model.model.", "base_model.")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What is not a factor: (pattern of the key's end, what it is). The first match names it.
OTHERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_magnitude_vector(\..+)?$"), "a DoRA magnitude"),
    (re.compile(r"\.lora_embedding_[AB](\..+)?$"), "a factor of an embedding"),
    (re.compile(r"\.hira_embedding_[AB](\..+)?$"), "a factor of an embedding (HiRA)"),
    (re.compile(r"\.dora_scale$"), "a DoRA magnitude in kohya's spelling"),
    (re.compile(r"\.lora_mid\.weight$"), "the core of a convolution"),
    (re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"), "a whole difference (LyCORIS)"),
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


class PartKey(NamedTuple):
    """A key that holds one part of a module's update, such as "lora_A.weight"."""

    module: str
    part: str


@cache
def part_pattern(parts: frozenset[str]) -> re.Pattern[str]:
    """What keys of these parts look like: module, part, with an adapter's name inside or not."""
    spelt: list[str] = []
    for part in sorted(parts):
        stem = part.removesuffix(".weight")
        # A part that PEFT keeps as a bare parameter may have been saved as a layer's weight by older versions.
        end = r"\.weight" if stem != part else r"(?:\.weight)?"
        spelt.append(rf"(?P<p{len(spelt)}>{re.escape(stem)})(?:\.(?!(?:weight|bias)$)[^.]+)?{end}")
    return re.compile(rf"^(?P<module>.+?)\.(?:{'|'.join(spelt)})$")


def parse_part_key(key: str, parts: frozenset[str]) -> PartKey | None:
    """The module and part of a key of one of these `parts`, or None for any other key."""
    match = part_pattern(parts).match(key)
    if match is None:
        return None
    which = next(i for i in range(len(parts)) if match[f"p{i}"] is not None)
    return PartKey(module_path(match["module"]), sorted(parts)[which])


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
