"""Recipes in files: what is read from them, what is refused, and that the documentation's own are right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.client_http import SpoliaError
from app.recipe_file import MOST_BYTES, read_recipe
from app.schemas import MergeBody

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    recipe = {"sources": [{"ref": "a/b", "weight": [0.2, 1]}, "a/c@2"], "rank": {"budget": 8}, "params": {"x": 0.001}}
    yaml = "sources:\n- ref: a/b\n  weight: [0.2, 1]\n- a/c@2\nrank: {budget: 8}\nparams: {x: 1e-3}  # one in 1000\n"
    assert read_recipe(written(tmp_path, yaml)) == recipe
    assert read_recipe(written(tmp_path, json.dumps(recipe))) == recipe
    assert read_recipe(written(tmp_path, json.dumps(recipe), "recipe.json")) == recipe


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("method: sum\nmethod: lego\n", r"\(line 2\): 'method' is given twice"),
        ("sources: &all [a/b]\nparams: *all\n", r"\(line 2\): aliases"),
        ("sources: [a/b\n", r"\(line 2\)"),
        ("sources: !!python/name:os.system x\n", "could not determine a constructor"),
        ("seed: .nan\n", "not JSON compliant"),
        ("seed: 2026-01-01\n", "not JSON serializable"),
        ("[" * 5000, "cannot be read as a recipe"),
        ("- a/b\n- a/c\n", "it must hold fields such as sources and method"),
        ("", "it must hold fields such as sources and method"),
        ("name: a/b\nsources: [a/c]\n", "leave the field 'name' out"),
        ("models:\n- model: a/b\nmerge_method: ties\n", "is written for mergekit"),
        ("x" * (MOST_BYTES + 1), "too large for a recipe"),
    ],
)
def test_what_is_no_recipe_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SpoliaError, match=sentence):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("text", ['{"seed": 1, "seed": 2}', "{", '{"seed": NaN}', "\xff"])
def test_json_is_read_as_strictly(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpoliaError, match="cannot be read"):
        read_recipe(written(tmp_path, text, "recipe.json"))


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_documentations_recipes_are_recipes(tmp_path: Path, text: str) -> None:
    fields: dict[str, Any] = {"sources": ["a/b"], **read_recipe(written(tmp_path, text))}
    MergeBody(name="a/result", **fields)
