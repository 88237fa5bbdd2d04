"""An export as one GGUF file, which llama.cpp loads with --lora.

llama.cpp (src/llama-adapter.h) multiplies every pair by adapter.lora.alpha / r with the pair's own rank r, and has one
alpha for all. Here alpha is the largest rank R, and each B is multiplied by r / R beforehand: the product is ΔW.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from deltas.adapter import Adapter
from deltas.architecture import Architecture
from deltas.exporting.canonical import Energy, ExportedModule, canonical
from deltas.exporting.gguf_names import arch_name, in_file_order, tensor_names

FILE = "adapter.gguf"
F32 = np.dtype(np.float32)


def write_gguf(
    adapter: Adapter, modules: Sequence[ExportedModule], base: Architecture, folder: Path
) -> dict[str, Energy]:
    """Write `adapter.gguf` into `folder`, module by module in float32; returns each module's energy.

    lora_a is [rank, in] and lora_b [out, rank], as numpy counts; of an embedding lora_a is [vocabulary, rank].

    Raises:
        NonFiniteTensor: naming the module.
    """
    names = tensor_names(base)
    alpha = max(module.rank for module in modules)
    writer = gguf.GGUFWriter(folder / FILE, arch_name(base))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for module in modules:
        a, b = (module.rank, module.in_features), (module.out_features, module.rank)
        for part, shape in (("lora_a", a[::-1] if module.kind == "embedding" else a), ("lora_b", b)):
            name = f"{names[module.name]}.{part}"
            writer.add_tensor_info(name, shape, F32, shape[0] * shape[1] * F32.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    energies: dict[str, Energy] = {}
    for module in modules:
        factors, energies[module.name] = canonical(adapter, module)
        _write(writer, factors.A.T if module.kind == "embedding" else factors.A)
        _write(writer, in_file_order(factors.B, module.name, base) * (module.rank / alpha))
    writer.close()
    return energies


def _write(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    writer.write_tensor_data(tensor.contiguous().numpy())
