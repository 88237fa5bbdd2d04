"""diffusers, by age: `….attn1.processor.to_q_lora.down.weight` (up to 0.20), `….to_q.lora.down.weight` and
`….q_proj.lora_linear_layer.up.weight` (up to 0.26), `unet.….to_q.lora_A.weight` (PEFT's names below a pipeline's part).

The oldest names are the attention processor's; the projections in question follow from them (huggingface/diffusers,
src/diffusers/utils/state_dict_utils.py). Without `.alpha` tensors the header may state the scale (`stated.py`);
where it does not, it is 1, as diffusers' loader has it.
"""

import re
from collections.abc import Iterable
from typing import ClassVar

from deltas.spellings.layout import ALPHA, A, B, Modules, SpeltKey

PARTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "prior", "controlnet")
OLDEST = re.compile(r"^(?P<path>.+?)(?:\.processor)?\.(?P<to>to_q|to_k|to_v|to_out)_lora\.(?P<side>down|up)\.weight$")
OLDER = re.compile(r"^(?P<path>.+?)(?:\.processor)?\.(?:lora|lora_linear_layer)\.(?P<side>down|up)\.weight$")
PEFT = re.compile(rf"^(?P<path>(?:{'|'.join(PARTS)})\..+)\.lora_(?P<side>[AB])\.weight$")
NUMBER = re.compile(r"^(?P<path>.+?)(?:\.processor)?\.alpha$")
SIDES = {"down": A, "up": B, "A": A, "B": B}
IN_UNET = {"to_out": "to_out.0"}
IN_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Diffusers:
    name: ClassVar[str] = "diffusers"
    bare: ClassVar[bool] = True
    said: ClassVar[str] = "diffusers'"

    def parse(self, key: str) -> SpeltKey | None:
        if match := OLDEST.match(key):
            names = IN_CLIP if match["path"].endswith("self_attn") else IN_UNET
            return SpeltKey(f"{match['path']}.{names.get(match['to'], match['to'])}", SIDES[match["side"]])
        if match := OLDER.match(key) or PEFT.match(key):
            return SpeltKey(match["path"], SIDES[match["side"]])
        return SpeltKey(match["path"], ALPHA) if (match := NUMBER.match(key)) else None

    def modules(self, paths: Iterable[str], base: Modules | None) -> dict[str, str]:
        """The paths themselves; without the pipeline's part where the base model is that part."""
        inner = {path: path.partition(".")[2] for path in paths}
        return {path: rest if base is not None and rest in base else path for path, rest in inner.items()}
