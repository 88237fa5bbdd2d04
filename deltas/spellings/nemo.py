"""NeMo's canonical LoRA: `….self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter.linear_in.weight`.

The names are those that NeMo's own converter (NVIDIA/NeMo, scripts/checkpoint_converters/lora_converters/
convert_nemo_to_canonical.py) turns into Hugging Face's of Llama-like models. Rank and alpha are in NeMo's
model_config.yaml, so a config with r and lora_alpha must come with the weights. Fused adapters (`lora_kqv_adapter`,
`lora_hto4h_adapter`) hold several projections by a head layout that only model_config.yaml tells; that converter splits
them.
"""

import re
from collections.abc import Iterable
from typing import ClassVar

from deltas.spellings.layout import A, B, Modules, SpeltKey

ADAPTERS = {
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter": "self_attn.q_proj",
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter": "self_attn.k_proj",
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter": "self_attn.v_proj",
    "self_attention.adapter_layer.lora_dense_attention_adapter": "self_attn.o_proj",
    "mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter": "mlp.gate_proj",
    "mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter": "mlp.up_proj",
    "mlp.adapter_layer.lora_4htoh_adapter": "mlp.down_proj",
}
KEY = re.compile(
    r"^(?P<path>(?:model\.)?(?:module\.)?(?:language_model\.encoder|decoder)\.layers\.(?P<layer>\d+)"
    rf"\.(?P<adapter>{'|'.join(map(re.escape, ADAPTERS))}))\.linear_(?P<side>in|out)\.weight$"
)
# Any of NeMo's adapters, also those that are not read.
ANY = re.compile(
    r"\.adapter_layer\.|\.lora_(?:kqv|linear_qkv|dense_attention|hto4h|4htoh)|\.adapter\.linear_(?:in|out)\."
)
FUSED = re.compile(r"\.lora_(?:kqv|hto4h)_adapter\.")


class Nemo:
    name: ClassVar[str] = "nemo"
    said: ClassVar[str] = "NeMo's"
    bare: ClassVar[bool] = False

    def parse(self, key: str) -> SpeltKey | None:
        match = KEY.match(key)
        return SpeltKey(match["path"], A if match["side"] == "in" else B) if match else None

    def modules(self, paths: Iterable[str], base: Modules | None) -> dict[str, str]:
        matches = {path: KEY.match(f"{path}.linear_in.weight") for path in paths}
        return {path: f"model.layers.{m['layer']}.{ADAPTERS[m['adapter']]}" for path, m in matches.items() if m}
