"""Module names as `target_modules` lists them: short where that means the same modules."""

from collections import Counter
from collections.abc import Mapping, Sequence


def short_names(names: Sequence[str], base_modules: Mapping[str, tuple[int, int]] | None) -> list[str]:
    """Short names ("q_proj") where `names` has every module of the base that ends so, full paths elsewhere.

    A short name that covers more modules than the file holds would make PEFT add random, untrained factors.
    `base_modules`: the base model's linear layers, where they are known.
    """
    base: Counter[str] = Counter(name.rsplit(".", 1)[-1] for name in base_modules or {})
    ours = Counter(name.rsplit(".", 1)[-1] for name in names)
    short = {suffix for suffix, count in ours.items() if base.get(suffix) == count}
    full = [name for name in sorted(names) if name.rsplit(".", 1)[-1] not in short]
    return sorted(short) + full
