"""What people hand to the client: a folder with an adapter, a reference, sources; as the API wants them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from app.client_http import Json, problem_error

TOKENIZER, HEAD = "tokenizer.json", "head.safetensors"
Sources = Sequence[str] | Mapping[str, float] | Sequence[Mapping[str, Any]]
"""References; references with their weights; or the API's own {ref, weight} objects."""
Weight = float | Sequence[float] | Sequence[Mapping[str, Any]]
"""A number; a gradient over depth (first block … last block); or {filter, value} rules, of which the first decides."""
MergeSources = Sequence[str] | Mapping[str, Weight] | Sequence[Mapping[str, Any]]
"""As Sources, with weights that may vary over the model."""
Rank = int | float | str | Sequence[float] | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A number, "max", "sum", an energy share; a gradient; {filter, rank} rules; or {"budget": average rank}."""


class AdapterFiles(NamedTuple):
    """What is uploaded of an adapter; all but the weights may be missing."""

    config: Path | None
    weights: Path
    card: Path | None
    tokenizer: Path | None
    head: Path | None


def adapter_files(files: Path | str | Sequence[Path | str]) -> AdapterFiles:
    """An adapter's files, of a folder or of the files named; tokenizer.json and head.safetensors told by their names.

    A safetensors file may come alone: some spellings need no config, and the service says so of the others.

    Raises:
        SpoliaError: naming what is missing.
    """
    if isinstance(files, (str, Path)) and Path(files).suffix != ".safetensors":
        folder = Path(files)
        if not folder.is_dir():
            raise problem_error("no-adapter", f"{folder} is not a folder; name the folder that holds the adapter.")
        names = ("adapter_config.json", "adapter_model.safetensors", "README.md", TOKENIZER, HEAD)
        found = [folder / name for name in names if (folder / name).is_file()]
        where = str(folder)
    else:
        found = [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)]
        where = "the files named"
        for path in found:
            if not path.is_file():
                raise problem_error("no-adapter", f"{path} is not a file.")
    by_suffix = {path.suffix: path for path in found if path.name not in (TOKENIZER, HEAD)}
    tokenizer, head = (next((path for path in found if path.name == name), None) for name in (TOKENIZER, HEAD))
    if ".json" not in by_suffix and where != "the files named":
        raise problem_error("no-adapter", f"There is no adapter_config.json in {where}.")
    if ".safetensors" not in by_suffix:
        raise problem_error("no-adapter", f"There is no adapter_model.safetensors in {where}.")
    return AdapterFiles(by_suffix.get(".json"), by_suffix[".safetensors"], by_suffix.get(".md"), tokenizer, head)


def split_reference(ref: str) -> tuple[str, str, str]:
    """(namespace, name, version) of namespace/name, namespace/name@3 or namespace/name:alias; "latest" if unsaid."""
    namespace, slash, rest = ref.partition("/")
    marks = [mark for mark in "@:" if mark in rest]
    name, _, version = rest.partition(marks[0]) if marks else (rest, "", "latest")
    dots = {namespace, name} & {".", ".."}  # an address would leave them out, and mean something else
    if dots or not slash or not namespace or not name or not version or "/" in rest:
        detail = f"{ref!r} names no adapter; write namespace/name, namespace/name@3 or namespace/name:alias."
        raise problem_error("bad-reference", detail)
    return namespace, name, version


def is_digest(ref: str) -> bool:
    """Whether a reference is a version's digest, which needs no name."""
    return ref.startswith("sha256:")


def part(text: str) -> str:
    """Text as one part of a path."""
    return quote(text, safe="")


def adapter_path(ref: str) -> str:
    """Where the API keeps an adapter."""
    namespace, name, _ = split_reference(ref)
    return f"/v1/adapters/{part(namespace)}/{part(name)}"


def version_path(ref: str) -> str:
    """Where the API keeps a version."""
    return f"{adapter_path(ref)}/versions/{part(split_reference(ref)[2])}"


def source_list(sources: MergeSources) -> Sequence[Any]:
    """Sources as the API wants them."""
    if isinstance(sources, Mapping):
        return [{"ref": ref, "weight": weight} for ref, weight in sources.items()]
    return [source if isinstance(source, str) else dict(source) for source in sources]


def message_list(prompt: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A chat; plain text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def read_config(path: Path) -> Json:
    """The content of an adapter_config.json. Raises SpoliaError when it is not a JSON object."""
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise problem_error("bad-config", f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise problem_error("bad-config", f"{path} holds {type(config).__name__}, not a JSON object.")
    return config
