"""What a file of a distillation was made from, as a digest: with another parameter or source it is made again."""

import hashlib
import json

from torch import Tensor

from merging.recycle.source import Teacher


def digest(*parts: object) -> str:
    """sha256 over tensors' bytes and everything else's JSON."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().contiguous().numpy().tobytes())
        else:
            found.update(json.dumps(part).encode())
        found.update(b"\0")
    return found.hexdigest()


def source_digest(source: Teacher) -> str:
    """Of what the source is called and all that it computes with."""
    sides = [side for _, factors in sorted(source.lora.items()) for side in (factors.A, factors.B)]
    return digest(source.ref, sorted(source.lora), *sides, source.head.weight, source.head.bias)
