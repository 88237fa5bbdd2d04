"""Licences: what kind each is, and what a merge of several inherits.

The kinds stand in the order of their strictness, as far as passing a derived adapter on goes. A merge has the licences
of its strictest kind, joined by AND where these differ; what is not known is never taken for harmless. This is a help
for people who keep order, no legal advice.

Names are SPDX ids, or those that model hubs use where SPDX has none; case does not matter. `OR` lets one choose
the milder side, `AND` binds to both, `WITH` adds an exception and is left aside.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from app.front_matter import BadFrontMatter, stated_texts
from app.problems import Refusal, sayable


class Kind(IntEnum):
    """Kinds of licences, the mildest first."""

    PERMISSIVE = 0
    NOTICE = 1
    WEAK_COPYLEFT = 2
    STRONG_COPYLEFT = 3
    MODEL = 4
    NON_COMMERCIAL = 5
    RESEARCH_ONLY = 6
    UNKNOWN = 7
    NO_DERIVATIVES = 8

    @property
    def said(self) -> str:
        """As JSON and sentences have it."""
        return self.name.lower().replace("_", "-")


KNOWN: dict[Kind, str] = {
    Kind.PERMISSIVE: "CC0-1.0 Unlicense 0BSD MIT-0 WTFPL PDDL-1.0",
    Kind.NOTICE: (
        "MIT Apache-2.0 BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause ISC Zlib BSL-1.0 NCSA AFL-3.0 ECL-2.0"
        " PostgreSQL Python-2.0 CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 ODC-By-1.0 Artistic-2.0"
        " CDLA-Permissive-1.0 CDLA-Permissive-2.0 MulanPSL-2.0"
    ),
    Kind.WEAK_COPYLEFT: (
        "MPL-2.0 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later EPL-1.0 EPL-2.0 CDDL-1.0 MS-PL"
        " EUPL-1.1 EUPL-1.2 LGPL-LR OFL-1.1"
    ),
    Kind.STRONG_COPYLEFT: (
        "GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later AGPL-3.0-only AGPL-3.0-or-later OSL-3.0"
        " CC-BY-SA-3.0 CC-BY-SA-4.0 GFDL-1.3-only ODbL-1.0 CDLA-Sharing-1.0 C-UDA-1.0"
    ),
    Kind.MODEL: (
        "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ creativeml-openrail-m"
        " bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m deepfloyd-if-license qwen deepseek"
        " falcon-llm nvidia-open-model-license"
    ),
    Kind.NON_COMMERCIAL: (
        "CC-BY-NC-1.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0"
        " PolyForm-Noncommercial-1.0.0 flux-1-dev-non-commercial-license stabilityai-ai-community"
    ),
    Kind.RESEARCH_ONLY: "qwen-research apple-amlr apple-ascl fair-noncommercial-research-license intel-research mrl",
    Kind.NO_DERIVATIVES: (
        "CC-BY-ND-1.0 CC-BY-ND-2.0 CC-BY-ND-3.0 CC-BY-ND-4.0 CC-BY-NC-ND-1.0 CC-BY-NC-ND-2.0 CC-BY-NC-ND-3.0"
        " CC-BY-NC-ND-4.0"
    ),
}
# What cards write, and what SPDX says.
_ALIASES = {
    "gpl": "GPL-3.0-or-later", "gpl-2.0": "GPL-2.0-only", "gpl-2.0+": "GPL-2.0-or-later", "gpl-3.0": "GPL-3.0-only",
    "gpl-3.0+": "GPL-3.0-or-later", "agpl-3.0": "AGPL-3.0-only", "lgpl": "LGPL-3.0-or-later", "cc": "unknown",
    "lgpl-2.1": "LGPL-2.1-only", "lgpl-3.0": "LGPL-3.0-only", "gfdl": "GFDL-1.3-only", "apache": "Apache-2.0",
    "apache2": "Apache-2.0", "apache 2.0": "Apache-2.0", "bsd": "BSD-3-Clause", "cc0": "CC0-1.0", "odbl": "ODbL-1.0",
    "pddl": "PDDL-1.0", "odc-by": "ODC-By-1.0", "c-uda": "C-UDA-1.0", "llama-2": "llama2", "llama-3": "llama3",
    "llama-3.1": "llama3.1", "llama-3.2": "llama3.2", "llama-3.3": "llama3.3", "llama-4": "llama4",
}  # fmt: skip
_BY_NAME = {name.lower(): (name, kind) for kind, names in KNOWN.items() for name in names.split()}
_TOKEN = re.compile(r"\(|\)|[^\s()]+")


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as somebody stated it, by its usual name, and its kind. None where nothing was stated."""

    name: str | None
    kind: Kind


def licence(stated: str | None) -> Licence:
    """The licence that these words state; of an unknown kind where they are not understood."""
    text = (stated or "").strip()
    if not text or text.lower() in ("unknown", "none", "noassertion"):
        return Licence(None, Kind.UNKNOWN)
    if (one := _single(text)) is not None:
        return one
    try:
        kind, rest = _either(_TOKEN.findall(text))
    except IndexError:
        return Licence(text, Kind.UNKNOWN)
    return Licence(text, Kind.UNKNOWN if rest else kind)


def card_licence(card: str | None) -> str | None:
    """The licence that a card's YAML front matter states, as model hubs read it; `other` is told by `license_name`."""
    try:
        stated = stated_texts(card or "", "license")
        if stated == ["other"]:
            stated = stated_texts(card or "", "license_name") or stated
    except BadFrontMatter:
        return None
    return sayable(" AND ".join(stated)).strip()[:255] or None


class NoDerivatives(Refusal):
    """A source's licence forbids adapting it."""

    def __init__(self, ref: str, name: str) -> None:
        detail = f"{ref} is licensed {name}, which forbids derivatives; nothing can be made from it."
        super().__init__(422, "no-derivatives", detail, reference=ref, license=name)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a version that is made from others may be passed on under. `sources`: (reference, licence), in order."""

    licence: Licence
    sources: tuple[tuple[str, Licence], ...]
    notes: tuple[str, ...]

    @property
    def as_json(self) -> dict[str, Any]:
        """As plans, reports and versions show it."""
        return {
            "license": self.licence.name,
            "kind": self.licence.kind.said,
            "sources": [{"ref": ref, "license": one.name, "kind": one.kind.said} for ref, one in self.sources],
            "notes": list(self.notes),
        }


def inherited(sources: Sequence[tuple[str, str | None]]) -> Inherited:
    """What a work made from these (reference, stated licence) inherits. Raises NoDerivatives."""
    known = tuple((ref, licence(stated)) for ref, stated in sources)
    for ref, one in known:
        if one.kind is Kind.NO_DERIVATIVES:
            raise NoDerivatives(ref, one.name or "")
    strictest = max(one.kind for _, one in known)
    names = list(dict.fromkeys(one.name for _, one in known if one.kind is strictest))
    stated = [name for name in names if name is not None]
    joined = None if len(stated) < len(names) else " AND ".join(map(_grouped, stated)) if len(stated) > 1 else stated[0]
    return Inherited(Licence(joined, strictest), known, tuple(_notes(known, strictest, stated)))


def _notes(known: Iterable[tuple[str, Licence]], strictest: Kind, stated: Sequence[str]) -> list[str]:
    notes = []
    for ref, one in dict(known).items():
        if one.kind is Kind.UNKNOWN:
            what = "states no licence" if one.name is None else f"has the licence '{one.name}', which is not known here"
            notes.append(f"{ref} {what}: the result counts as the strictest that such a licence could be.")
    if len(stated) > 1 and strictest > Kind.NOTICE:
        notes.append(f"{' and '.join(stated)} hold together; whether they can is for you to see.")
    return notes


def _single(text: str) -> Licence | None:
    """A licence by its name alone; None if there is none of it."""
    name = _ALIASES.get(text.lower(), text)
    found = _BY_NAME.get(name.lower())
    return None if found is None else Licence(*found)


def _grouped(name: str) -> str:
    return f"({name})" if " " in name else name


def _either(tokens: list[str]) -> tuple[Kind, list[str]]:
    kind, rest = _both(tokens)
    while rest and rest[0].upper() == "OR":
        other, rest = _both(rest[1:])
        kind = min(kind, other)
    return kind, rest


def _both(tokens: list[str]) -> tuple[Kind, list[str]]:
    kind, rest = _operand(tokens)
    while rest and rest[0].upper() == "AND":
        other, rest = _operand(rest[1:])
        kind = max(kind, other)
    return kind, rest


def _operand(tokens: list[str]) -> tuple[Kind, list[str]]:
    """Raises IndexError where the words end too early."""
    if tokens[0] == "(":
        kind, rest = _either(tokens[1:])
        return (kind if rest[0] == ")" else Kind.UNKNOWN), rest[1:]
    one = _single(tokens[0])
    rest = tokens[1:]
    if rest and rest[0].upper() == "WITH":
        rest = rest[1:][1:]
    return (Kind.UNKNOWN if one is None else one.kind), rest
