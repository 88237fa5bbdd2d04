"""What a spelling is: how its keys are taken apart, and which module a path in them means."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, Protocol

ALPHA = "alpha"
A, B = "lora_A.weight", "lora_B.weight"
# LyCORIS' own names of parts are PEFT's too.
LYCORIS_PARTS = tuple(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")) + tuple(
    f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
)
Modules = Mapping[str, tuple[int, int]]  # a base model's linear layers, name → (out, in)


class SpeltKey(NamedTuple):
    """A key taken apart: the path that stands for a module, and the part, in PEFT's words or "alpha"."""

    path: str
    part: str


class Layout(Protocol):
    """One spelling."""

    name: ClassVar[str]
    said: ClassVar[str]  # as in "the weights are in … spelling"
    bare: ClassVar[bool]  # whether the weights say their scale themselves, so that no config need come with them

    def parse(self, key: str) -> SpeltKey | None:
        """The key taken apart, or None where it is not in this spelling."""
        ...

    def modules(self, paths: Iterable[str], base: Modules | None) -> dict[str, str]:
        """Path → the module that it means; `base`: the base model's modules, where it is known."""
        ...
