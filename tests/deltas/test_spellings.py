"""Weights in other trainers' spellings, without a config: read as what the trainers' own formulas say, densely."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deltas.adapter import Adapter
from deltas.errors import BadConfig, BadTensors
from deltas.header import read_header
from deltas.spellings import Respelling, respelt_config, written_config

BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0"
CLIP = "text_model.encoder.layers.11"


def r(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def opened(
    folder: Path,
    tensors: Mapping[str, Tensor],
    base: Mapping[str, tuple[int, int]] | None = None,
    metadata: dict[str, str] | None = None,
) -> Adapter:
    weights = folder / "adapter_model.safetensors"
    save_file(dict(tensors), weights, metadata)
    return Adapter.open(written_config(weights, read_header(weights), "acme/sd", base), weights)


def assert_updates(adapter: Adapter, expected: Mapping[str, Tensor]) -> None:
    assert set(adapter.modules) == set(expected)
    for name, delta in expected.items():
        factors = adapter.factors(name)
        torch.testing.assert_close(factors.B.double() @ factors.A.double(), delta.double(), rtol=1e-5, atol=1e-5)


def test_kohya(tmp_path: Path) -> None:
    q, f, t = f"lora_unet_{BLOCK}.attn1.to_q", f"lora_unet_{BLOCK}.ff.net.0.proj", f"lora_te_{CLIP}.self_attn.out_proj"
    tensors = {}
    for path, rank in ((q, 4), (f, 2), (t, 4)):
        flat = path.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": r(rank, 6), f"{flat}.lora_up.weight": r(5, rank)}
    tensors[f"{q.replace('.', '_')}.alpha"] = torch.tensor(1.0)
    tensors[f"{f.replace('.', '_')}.alpha"] = torch.tensor(3.0)
    adapter = opened(tmp_path, tensors)
    assert adapter.obstacles == ()
    assert (adapter.config.base_model, adapter.family) == ("acme/sd", "lora")
    assert_updates(
        adapter,
        {
            f"unet.{BLOCK}.attn1.to_q": 1 / 4 * r(5, 4) @ r(4, 6),
            f"unet.{BLOCK}.ff.net.0.proj": 3 / 2 * r(5, 2) @ r(2, 6),
            f"text_encoder.{CLIP}.self_attn.out_proj": r(5, 4) @ r(4, 6),  # no alpha: the rank
        },
    )


NAMES = {
    # Stable Diffusion 1.5 and XL, as diffusers and transformers have them.
    "lora_unet_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0":
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "lora_unet_down_blocks_1_resnets_0_time_emb_proj": "unet.down_blocks.1.resnets.0.time_emb_proj",
    "lora_unet_time_embedding_linear_1": "unet.time_embedding.linear_1",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_2": "unet.input_blocks.4.1.transformer_blocks.0.ff.net.2",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "lora_te2_text_model_encoder_layers_31_self_attn_k_proj":
        "text_encoder_2.text_model.encoder.layers.31.self_attn.k_proj",
    # Flux and Stable Diffusion 3, as their authors and sd-scripts have them.
    "lora_unet_double_blocks_0_img_attn_proj": "unet.double_blocks.0.img_attn.proj",
    "lora_unet_double_blocks_18_txt_mlp_0": "unet.double_blocks.18.txt_mlp.0",
    "lora_unet_single_blocks_3_modulation_lin": "unet.single_blocks.3.modulation.lin",
    "lora_unet_guidance_in_in_layer": "unet.guidance_in.in_layer",
    "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1":
        "unet.joint_blocks.0.context_block.adaLN_modulation.1",
    "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0":
        "text_encoder_3.encoder.block.0.layer.1.DenseReluDense.wi_0",
}  # fmt: skip


def test_kohyas_underscores_become_the_dots_that_diffusers_has(tmp_path: Path) -> None:
    tensors = {f"{path}.lora_down.weight": r(2, 6) for path in NAMES}
    tensors |= {f"{path}.lora_up.weight": r(5, 2) for path in NAMES}
    assert sorted(opened(tmp_path, tensors).modules) == sorted(NAMES.values())


def test_with_the_base_at_hand_its_modules_say_where_the_dots_are(tmp_path: Path) -> None:
    base = {"model.odd_name.q_proj": (5, 6), "model.odd.name.v_proj": (5, 6)}
    tensors = {}
    for path in ("lora_te_model_odd_name_q_proj", "lora_te_model_odd_name_v_proj"):
        tensors |= {f"{path}.lora_down.weight": r(2, 6), f"{path}.lora_up.weight": r(5, 2)}
    assert set(opened(tmp_path, tensors, base).modules) == set(base)


def test_a_module_whose_name_ends_anothers_has_its_own_rank_and_alpha(tmp_path: Path) -> None:
    base = {"proj_out": (5, 6), "single_transformer_blocks.0.proj_out": (5, 6), "blocks.0.proj_out": (5, 6)}  # Flux
    tensors = {}
    for rank, name in zip((2, 3, 3), base, strict=True):
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": r(rank, 6), f"{flat}.lora_up.weight": r(5, rank)}
    weights = tmp_path / "adapter_model.safetensors"
    save_file(tensors, weights)
    config = json.dumps(written_config(weights, read_header(weights), "acme/flux", base), sort_keys=True)
    adapter = Adapter.open(config.encode(), weights)
    assert [adapter.modules[name].rank for name in base] == [2, 3, 3]
    assert {info.scale for info in adapter.modules.values()} == {1.0}


def test_convolutions_are_refused_by_name_with_their_number(tmp_path: Path) -> None:
    tensors = {"lora_unet_proj_in.lora_down.weight": r(2, 6, 1, 1), "lora_unet_proj_in.lora_up.weight": r(5, 2, 1, 1)}
    with pytest.raises(BadTensors, match="no linear layer"):
        opened(tmp_path, tensors)
    tensors |= {"lora_unet_ff.lora_down.weight": r(2, 6), "lora_unet_ff.lora_up.weight": r(5, 2)}
    adapter = opened(tmp_path, tensors)
    assert list(adapter.modules) == ["unet.ff"]
    assert adapter.obstacles == ("'lora_unet_proj_in.lora_down.weight' is a factor of a convolution (2 such)",)


TO = {"to_q": "to_q", "to_out": "to_out.0"}


@pytest.mark.parametrize("age", ["processor", "lora", "peft"])
def test_diffusers_of_every_age_names_the_same_modules(tmp_path: Path, age: str) -> None:
    clip = f"text_encoder.{CLIP}.self_attn"
    tensors, expected = {}, {f"{clip}.q_proj": 2 / 4 * r(5, 4) @ r(4, 6)}
    for old, new in TO.items():
        expected[f"unet.{BLOCK}.attn1.{new}"] = r(5, 3) @ r(3, 6)
        path = f"unet.{BLOCK}.attn1.{new}"
        down, up = {
            "processor": [f"unet.{BLOCK}.attn1.processor.{old}_lora.{side}.weight" for side in ("down", "up")],
            "lora": [f"{path}.lora.down.weight", f"{path}.lora.up.weight"],
            "peft": [f"{path}.lora_A.weight", f"{path}.lora_B.weight"],
        }[age]
        tensors |= {down: r(3, 6), up: r(5, 3)}
    down, up = {
        "processor": (f"{clip}.to_q_lora.down.weight", f"{clip}.to_q_lora.up.weight"),
        "lora": (f"{clip}.q_proj.lora_linear_layer.down.weight", f"{clip}.q_proj.lora_linear_layer.up.weight"),
        "peft": (f"{clip}.q_proj.lora_A.weight", f"{clip}.q_proj.lora_B.weight"),
    }[age]
    tensors |= {down: r(4, 6), up: r(5, 4), f"{clip}.q_proj.alpha": torch.tensor(2.0)}
    assert_updates(opened(tmp_path, tensors), expected)


@pytest.mark.parametrize(
    ("stated", "scales"),
    [
        ({"unet.r": 3, "unet.lora_alpha": 12, "text_encoder.lora_alpha": None}, (4, 4, 1)),
        ({"unet.lora_alpha": 12, "unet.alpha_pattern": {"to_k": 6}, "text_encoder.lora_alpha": 2}, (4, 2, 2 / 4)),
        ({"unet.lora_alpha": 12, "unet.use_rslora": True}, (12 / 3**0.5, 12 / 3**0.5, 1)),
    ],
)
def test_diffusers_states_its_scale_in_the_header(
    tmp_path: Path, stated: dict[str, Any], scales: tuple[float, float, float]
) -> None:
    paths = (f"unet.{BLOCK}.attn1.to_q", f"unet.{BLOCK}.attn1.to_k", f"text_encoder.{CLIP}.self_attn.q_proj")
    ranks, tensors = dict(zip(paths, (3, 3, 4), strict=True)), {}
    for path, rank in ranks.items():
        tensors |= {f"{path}.lora_A.weight": r(rank, 6), f"{path}.lora_B.weight": r(5, rank)}
    adapter = opened(tmp_path, tensors, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(stated)})
    expected = {path: scale * r(5, ranks[path]) @ r(ranks[path], 6) for path, scale in zip(paths, scales, strict=True)}
    assert_updates(adapter, expected)


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ("[", "must be a JSON object"),
        ('{"unet.lora_alpha": "4"}', "part 'unet': lora_alpha must be a finite number, found '4'"),
        ('{"unet.lora_alpha": NaN}', "part 'unet': lora_alpha must be a finite number"),
    ],
)
def test_a_header_that_diffusers_did_not_write_is_refused(tmp_path: Path, stated: str, sentence: str) -> None:
    path = f"unet.{BLOCK}.attn1.to_q"
    tensors = {f"{path}.lora_A.weight": r(3, 6), f"{path}.lora_B.weight": r(5, 3)}
    with pytest.raises(BadConfig, match=sentence):
        opened(tmp_path, tensors, metadata={"lora_adapter_metadata": stated})


def test_a_pipelines_part_that_is_the_base_loses_its_prefix(tmp_path: Path) -> None:
    tensors = {"text_encoder.fc1.lora_A.weight": r(2, 6), "text_encoder.fc1.lora_B.weight": r(5, 2)}
    assert set(opened(tmp_path, tensors, {"fc1": (5, 6)}).modules) == {"fc1"}


def test_loha_of_lycoris(tmp_path: Path) -> None:
    parts = {"hada_w1_a": r(9, 2), "hada_w1_b": r(2, 8), "hada_w2_a": r(9, 2, seed=1), "hada_w2_b": r(2, 8, seed=1)}
    tensors = {f"lora_unet_ff_net_2.{part}": value for part, value in parts.items()}
    adapter = opened(tmp_path, {**tensors, "lora_unet_ff_net_2.alpha": torch.tensor(1.0)})
    assert adapter.family == "loha"
    product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    assert_updates(adapter, {"unet.ff.net.2": product / 2})


def test_lokr_of_lycoris_whole_matrices_have_scale_one(tmp_path: Path) -> None:
    tensors = {
        "lycoris_a.lokr_w1": r(2, 3), "lycoris_a.lokr_w2_a": r(4, 2), "lycoris_a.lokr_w2_b": r(2, 5),
        "lycoris_a.alpha": torch.tensor(6.0),
        "lycoris_b.lokr_w1": r(2, 3), "lycoris_b.lokr_w2": r(4, 5), "lycoris_b.alpha": torch.tensor(7.0),
    }  # fmt: skip
    assert_updates(
        opened(tmp_path, tensors),
        {"a": 6 / 2 * torch.kron(r(2, 3), r(4, 2) @ r(2, 5)), "b": torch.kron(r(2, 3), r(4, 5))},
    )


KOHYA = {"lora_unet_ff.lora_down.weight": r(2, 6), "lora_unet_ff.lora_up.weight": r(5, 2)}
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "PEFT": ({"base_model.model.q.lora_A.weight": r(2, 6)}, "PEFT's key names ('base_model.model.q.lora_A.weight')"),
    "NeMo": (
        {"model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight": r(2, 6)},
        "the weights are NeMo's",
    ),
    "unknown": ({"encoder.weight": r(2, 6)}, "keys like 'encoder.weight' are in no spelling"),
    "mixed": ({**KOHYA, "lora_unet_b.lokr_w1": r(2, 2), "lora_unet_b.lokr_w2": r(2, 2)}, "found LOKR, LORA"),
    "alpha": ({**KOHYA, "lora_unet_ff.alpha": r(2)}, "must be one finite number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_without_a_config_is_refused_by_name(tmp_path: Path, case: str) -> None:
    tensors, sentence = REFUSED[case]
    with pytest.raises((BadConfig, BadTensors)) as caught:
        opened(tmp_path, tensors)
    assert sentence in str(caught.value)


NEMO = "model.decoder.layers.7.{}.linear_{}.weight"
NEMO_NAMES = {
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter": "model.layers.7.self_attn.k_proj",
    "self_attention.adapter_layer.lora_dense_attention_adapter": "model.layers.7.self_attn.o_proj",
    "mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter": "model.layers.7.mlp.up_proj",
    "mlp.adapter_layer.lora_4htoh_adapter": "model.layers.7.mlp.down_proj",
}


def test_nemos_canonical_weights_are_read_with_a_config_of_rank_and_alpha(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    tensors = {NEMO.format(name, "in"): r(2, 6) for name in NEMO_NAMES}
    tensors |= {NEMO.format(name, "out"): r(5, 2) for name in NEMO_NAMES}
    save_file(tensors, weights)
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": "all-linear"}
    config = respelt_config(given, read_header(weights))
    assert config is not None
    assert respelt_config(config, read_header(weights)) is None
    assert_updates(Adapter.open(config, weights), {name: 3 / 2 * r(5, 2) @ r(2, 6) for name in NEMO_NAMES.values()})


def test_nemos_fused_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    save_file({NEMO.format("self_attention.adapter_layer.lora_kqv_adapter", "in"): r(2, 6)}, weights)
    with pytest.raises(BadTensors, match="convert_nemo_to_canonical"):
        respelt_config({"peft_type": "LORA"}, read_header(weights))


@pytest.mark.parametrize(
    "field", ["kohya", {"layout": "x", "modules": {}}, {"layout": "kohya"}, {"layout": "kohya", "modules": {"a": 1}}]
)
def test_a_spelling_that_nobody_wrote_is_refused(field: Any) -> None:
    with pytest.raises(BadConfig, match="spolia_spelling"):
        Respelling.of({"spolia_spelling": field})


def test_a_dora_in_kohyas_spelling_is_an_obstacle(tmp_path: Path) -> None:
    adapter = opened(tmp_path, {**KOHYA, "lora_unet_ff.dora_scale": r(5, 1)})
    assert "'lora_unet_ff.dora_scale' is a DoRA magnitude" in adapter.obstacles[0]
