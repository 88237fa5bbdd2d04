"""Telling the end of memory from other failures: it has a way out that others have not."""

import torch

_ON_CPU = "DefaultCPUAllocator"  # torch raises a plain RuntimeError when the system has no memory left


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the host or of a device, could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _ON_CPU in str(error)
