"""A recipe in a file: YAML or JSON, with the fields of POST /v1/merges but its name.

    method: sum
    rank: {budget: 12}
    sources:
      - ref: me/spam@1
        weight: [0.2, 0.8]            # first block … last block
      - ref: me/dates
        weight:
          - filter: self_attn
            value: 1.0
          - value: 0.3

What a field may hold is the service's to say; here a file is only read, and strictly: a field that is given twice or a
reference to another part of the file is refused, since one of two readers would see something else.
"""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from app.client_http import Json, problem_error

MOST_BYTES = 4 * 1024 * 1024
MERGEKIT_FIELDS = frozenset({"merge_method", "models", "slices", "base_model"})


def read_recipe(path: Path | str) -> Json:
    """The recipe in a file. Raises SpoliaError with what is wrong; OSError if there is no such file."""
    with Path(path).open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise problem_error("bad-recipe", f"{path} is larger than {MOST_BYTES} bytes, too large for a recipe.")
    try:
        text = raw.decode("utf-8-sig")
        recipe = json.loads(text, object_pairs_hook=_unique) if _is_json(path) else yaml.load(text, Loader=_Strict)
        json.dumps(recipe, allow_nan=False)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise problem_error("bad-recipe", f"{path} cannot be read{where}: {error.problem}.") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise problem_error("bad-recipe", f"{path} cannot be read as a recipe: {error}.") from None
    if not isinstance(recipe, dict):
        raise problem_error("bad-recipe", f"{path} is no recipe: it must hold fields such as sources and method.")
    if "name" in recipe:
        raise problem_error(
            "bad-recipe", f"{path} names its result; leave the field 'name' out and give it beside FILE."
        )
    if MERGEKIT_FIELDS & recipe.keys():
        words = "write adapters as sources: [{ref, weight}], and the method as method"
        raise problem_error("bad-recipe", f"{path} is written for mergekit; here, {words}.")
    return recipe


def _is_json(path: Path | str) -> bool:
    return Path(path).suffix.lower() == ".json"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is given twice")
    return found


class _Strict(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Plain values alone, numbers as YAML 1.2 and JSON write them (1e-3), no aliases, no field given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read in recipes", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", mark)
        return dict(super().construct_mapping(node, deep))


_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)
