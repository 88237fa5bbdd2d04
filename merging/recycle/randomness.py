"""Random numbers that depend on what they are for, not on what was drawn before.

Every use names itself, so a run that is resumed draws what an uninterrupted one would have drawn, without any
generator's state on disk.
"""

import hashlib

import torch


def generator(seed: int, *use: str | int) -> torch.Generator:
    """A generator of its own for `use`, such as ("inversion", "me/cats@1", 17)."""
    digest = hashlib.sha256(repr((seed, *use)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def below(limit: int, rng: torch.Generator) -> int:
    """A whole number from 0 to `limit` − 1."""
    return int(torch.randint(limit, (), generator=rng))


def chance(probability: float, rng: torch.Generator) -> bool:
    """True with this probability."""
    return float(torch.rand((), generator=rng)) < probability
