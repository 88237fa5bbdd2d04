"""The parametrisations that are read, and which one an adapter_config.json describes. The first that knows it wins."""

from collections.abc import Mapping
from typing import Any

from deltas.families.adalora import AdaLora
from deltas.families.dora import Dora
from deltas.families.family import Family
from deltas.families.glora import Glora
from deltas.families.hira import Hira
from deltas.families.ia3 import Ia3
from deltas.families.kasa import Kasa
from deltas.families.loha import Loha
from deltas.families.lokr import Lokr
from deltas.families.lora import Lora
from deltas.families.miss import Bone, BoneBat, Miss, MissBat
from deltas.families.started import Olora, Pissa
from deltas.families.vera import Vera

# Variants before plain LoRA, which recognises all of its own type.
FAMILIES: tuple[Family, ...] = (
    Dora(),
    Kasa(),
    Pissa(),
    Olora(),
    Lora(),
    AdaLora(),
    Miss(),
    MissBat(),
    Bone(),
    BoneBat(),
    Glora(),
    Hira(),
    Loha(),
    Lokr(),
    Vera(),
    Ia3(),
)


def recognise(raw: Mapping[str, Any]) -> Family | None:
    """The family of an adapter with this config, or None when it is of no kind that is known here."""
    return next((family for family in FAMILIES if family.recognises(raw)), None)
