"""Reading weights in another spelling, by what their config says of it."""

from collections.abc import Mapping
from typing import Any

from deltas.config import SPELLING_FIELD
from deltas.errors import BadConfig
from deltas.keys import PartKey
from deltas.spellings.diffusers import Diffusers
from deltas.spellings.kohya import Kohya
from deltas.spellings.layout import ALPHA, Layout
from deltas.spellings.nemo import Nemo

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (Kohya(), Diffusers(), Nemo())}


class Respelling:
    """The translation of one file's keys."""

    def __init__(self, layout: Layout, modules: Mapping[str, str]) -> None:
        self.layout = layout
        self.modules = modules

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Respelling | None":
        """What a config says of its weights' spelling; None where they are in PEFT's.

        Raises:
            BadConfig: the field is not one that `written_config` wrote.
        """
        field = raw.get(SPELLING_FIELD)
        if field is None:
            return None
        layout = LAYOUTS.get(str(field.get("layout"))) if isinstance(field, Mapping) else None
        modules = field.get("modules") if layout else None
        if layout is None or not isinstance(modules, Mapping) or not all(isinstance(m, str) for m in modules.values()):
            raise BadConfig(
                f'{SPELLING_FIELD} must be {{"layout": one of {", ".join(LAYOUTS)}, "modules": {{path: module}}}}',
                SPELLING_FIELD,
            )
        return cls(layout, modules)

    def part_key(self, key: str, parts: frozenset[str]) -> PartKey | None:
        """As `deltas.keys.parse_part_key`."""
        spelt = self.layout.parse(key)
        module = self.modules.get(spelt.path) if spelt else None
        return PartKey(module, spelt.part) if spelt and module is not None and spelt.part in parts else None

    def other(self, key: str) -> str | None:
        """What a key of no module holds: the config leaves out the paths of convolutions."""
        return "a factor of a convolution" if self.layout.parse(key) else None

    def is_number(self, key: str) -> bool:
        """Whether a key is an alpha, which the config holds already."""
        spelt = self.layout.parse(key)
        return spelt is not None and spelt.part == ALPHA
