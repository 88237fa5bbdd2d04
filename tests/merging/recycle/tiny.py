"""A tiny random vision base, as transformers saves one."""

import json
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model


def write_tiny_vision(folder: Path) -> Path:
    """A transformers folder: 3 blocks of width 24, patches of 4 pixels, 5×5 of them when it was made."""
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=4,
            initializer_range=0.3,
        )
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if "lambda1" in name or "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder
