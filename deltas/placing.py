"""Every tensor's place in an adapter: a part of a module, an extra, a copy of the base layer, or of no use here."""

from collections.abc import Mapping
from typing import NamedTuple

from deltas.config import AdapterConfig
from deltas.errors import BadTensors
from deltas.extras import Extra, find_extra
from deltas.families.family import Family
from deltas.header import Header, TensorEntry
from deltas.keys import describe_other_key, parse_part_key
from deltas.module import ModuleInfo
from deltas.spellings import Respelling

WRAPPED = ".modules_to_save."


class Placed(NamedTuple):
    """Where the file's tensors belong; `others`: a sentence for each kind of tensor that is of no use."""

    modules: dict[str, ModuleInfo]
    extras: dict[str, Extra]
    copies: list[Extra]
    others: list[str]


def place(family: Family, config: AdapterConfig, header: Header, conversion_rank: int) -> Placed:
    """Modules with all their parts, extras and copies, and a sentence for each kind of tensor that is none of these.

    Raises:
        BadTensors: naming the tensor that does not fit.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    extras: dict[str, Extra] = {}
    copies: list[Extra] = []
    others: dict[str, list[str]] = {}
    shared: dict[str, TensorEntry] = {}  # by all modules
    parts = frozenset({**family.parts, **family.embedding_parts}) | family.shared
    respelling = Respelling.of(config.raw)
    for entry in header.tensors:
        if respelling and respelling.is_number(entry.name):
            continue
        key = respelling.part_key(entry.name, parts) if respelling else parse_part_key(entry.name, parts)
        extra = find_extra(entry, config) if key is None and not respelling else None
        if key is not None:
            where = shared if key.part in family.shared else found.setdefault(key.module, {})
            if key.part in where:
                raise BadTensors(
                    f"module '{key.module}' has two {_short(key.part)} tensors ('{entry.name[:200]}' is the second)",
                    entry.name,
                )
            where[key.part] = entry
        elif extra is not None and extra.kind == "copy":
            copies.append(extra)
        elif extra is not None and extra.kind == "again":
            continue
        elif extra is not None:
            if (known := extras.get(extra.name)) is not None:
                # Beside a resized vocabulary PEFT writes modules_to_save twice, under the wrapper's path too.
                wrapped = {other.key: WRAPPED in other.key for other in (known, extra)}
                if known.shape == extra.shape and any(wrapped.values()) and not all(wrapped.values()):
                    extras[extra.name] = known if wrapped[extra.key] else extra
                    continue
                raise BadTensors(f"'{extra.name}' is given twice ('{entry.name[:200]}' is the second)", entry.name)
            extras[extra.name] = extra
        elif what := (respelling and respelling.other(entry.name)) or describe_other_key(entry.name):
            others.setdefault(what, []).append(entry.name)
        else:
            raise BadTensors(
                f"key '{entry.name[:200]}' belongs to no module: {family.name} keys end in {_alternatives(family)}",
                entry.name,
            )
    for name, entries in found.items():
        _check_complete(family, name, entries)
    infos = family.modules(config, {name: found[name] | shared for name in sorted(found)}, conversion_rank)
    if not found and not others and not extras:
        raise BadTensors(f"the weights file holds no {family.name} factors")
    modules = {info.name: info for info in sorted(infos, key=lambda info: info.name)}
    _check_extras(modules, extras)
    sentences = [f"'{keys[0][:200]}' is {what} ({len(keys)} such)" for what, keys in others.items()]
    return Placed(modules, {name: extras[name] for name in sorted(extras)}, copies, sentences)


def _check_complete(family: Family, name: str, entries: Mapping[str, TensorEntry]) -> None:
    """Raises BadTensors where a part is missing."""
    own = family.embedding_parts.keys() - family.parts.keys()  # a part that both have tells nothing
    layout = family.embedding_parts if entries.keys() & own else family.parts
    present = next(iter(entries))
    for part, needed in layout.items():
        if needed and part not in entries:
            raise BadTensors(
                f"module '{name}' has {_short(present)} but no {_short(part)}; the file is incomplete",
                entries[present].name,
            )


def _check_extras(modules: Mapping[str, ModuleInfo], extras: Mapping[str, Extra]) -> None:
    """Raises BadTensors for a lora_bias without its factors or of another length."""
    for extra in extras.values():
        if extra.kind == "lora_bias":
            info = modules.get(extra.module)
            if info is None or extra.shape != (info.out_features,):
                raise BadTensors(
                    f"tensor '{extra.key[:200]}' of shape {list(extra.shape)} is a bias, but"
                    f" {f'its module has {info.out_features} outputs' if info else 'its module has no factors'}",
                    extra.key,
                )


def _short(part: str) -> str:
    return part.removesuffix(".weight")


def _alternatives(family: Family) -> str:
    return " or ".join(f".{part}" for part in (*family.parts, *family.embedding_parts))
