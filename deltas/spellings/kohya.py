"""kohya's sd-scripts and LyCORIS: `lora_unet_down_blocks_0_…_to_q.lora_down.weight`, `lora_te_….alpha`.

A path is the module's with underscores for dots, which loses where the dots were. With the base model at hand its list
of modules says it; otherwise the names that diffusers and transformers give the parts of Stable Diffusion, and the
authors those of Flux, do: a closed set of words with underscores in them. Text encoders and the UNet get diffusers'
prefixes, so that files of both spellings name the same modules.
"""

import re
from collections.abc import Iterable
from typing import ClassVar

from deltas.spellings.layout import ALPHA, LYCORIS_PARTS, A, B, Modules, SpeltKey

COMPONENTS = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",  # T5, of Stable Diffusion 3 and Flux
    "lora_transformer": "transformer",
    "lycoris": "",
}
PARTS = {"lora_down.weight": A, "lora_up.weight": B, ALPHA: ALPHA, **{part: part for part in LYCORIS_PARTS}}
KEY = re.compile(rf"^(?P<path>(?:{'|'.join(COMPONENTS)})_\w+)\.(?P<part>{'|'.join(map(re.escape, PARTS))})$")
# Names with underscores in diffusers' UNets, CLIP, T5, the authors' Flux and Stable Diffusion 3, and language models;
# the longest that fits wins.
WORDS = sorted(
    "adaLN_modulation add_embedding add_k_proj add_q_proj add_v_proj context_block context_embedder conv_in"
    " conv_out conv_shortcut double_blocks down_blocks down_proj emb_layers embed_tokens final_layer"
    " final_layer_norm gate_proj guidance_in img_attn img_in img_mlp img_mod in_layer in_layers input_blocks"
    " joint_blocks k_proj layer_norm1 layer_norm2 linear_1 linear_2 lm_head mid_block middle_block o_proj"
    " out_layer out_layers out_proj output_blocks patch_embed pos_embed proj_in proj_out q_proj self_attn"
    " single_blocks single_transformer_blocks skip_connection text_model text_projection time_emb_proj"
    " time_embed time_embedding time_in to_add_out to_k to_out to_q to_v transformer_blocks txt_attn txt_in"
    " txt_mlp txt_mod up_blocks up_proj v_proj vector_in wi_0 wi_1 x_block".split(),
    key=len,
    reverse=True,
)
PIECE = re.compile(rf"({'|'.join(WORDS)}|[^_]+)(?:_|$)")


class Kohya:
    name: ClassVar[str] = "kohya"
    bare: ClassVar[bool] = True
    said: ClassVar[str] = "kohya's (sd-scripts, LyCORIS)"

    def parse(self, key: str) -> SpeltKey | None:
        match = KEY.match(key)
        return SpeltKey(match["path"], PARTS[match["part"]]) if match else None

    def modules(self, paths: Iterable[str], base: Modules | None) -> dict[str, str]:
        known = {name.replace(".", "_"): name for name in base or ()}
        found: dict[str, str] = {}
        for path in paths:
            prefix = max((p for p in COMPONENTS if path.startswith(p + "_")), key=len)
            flat = path.removeprefix(prefix + "_")
            dotted = ".".join(word for word in [COMPONENTS[prefix], *PIECE.findall(flat)] if word)
            found[path] = dotted if base is None else known.get(flat, dotted)
        return found
