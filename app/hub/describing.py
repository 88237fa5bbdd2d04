"""A repository as the Hub's `model_info` and `list_models` show it."""

from typing import Any

from app.front_matter import lenient_front_matter
from app.hub.trees import hub_time
from app.presenting import version_json
from deltas.families.family import DTYPES
from store.hub_records import Commit
from store.records import Version

Json = dict[str, Any]
_SAFETENSORS = {name: short for short, name in DTYPES.items()}


def model_json(namespace: str, name: str, commit: Commit) -> Json:
    """One repository at one commit, without its files. A draft of no version yet has no adapter's facts."""
    ref = f"{namespace}/{name}"
    document: Json = {
        "_id": commit.oid[:24],
        "id": ref,
        "modelId": ref,
        "author": namespace,
        "sha": commit.oid,
        "lastModified": hub_time(commit.created_at),
        "createdAt": hub_time(commit.created_at),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": "peft",
        "tags": ["peft"],
    }
    if commit.version is not None:
        document |= _facts(commit.version)
    return document


def _facts(version: Version) -> Json:
    metadata = lenient_front_matter(version.card)
    return {
        "createdAt": hub_time(version.created_at),
        "pipeline_tag": metadata.get("pipeline_tag", "text-generation"),
        "tags": hub_tags(version),
        "cardData": metadata or None,
        "config": {"peft": {"base_model_name_or_path": version.base_model, "task_type": "CAUSAL_LM"}},
        "safetensors": {
            "parameters": {_SAFETENSORS.get(version.dtype, version.dtype): version.parameters},
            "total": version.parameters,
        },
        "baseModels": _base(version),
        "usedStorage": version.size_bytes,
        "spolia": {key: value for key, value in version_json(version).items() if key != "card"},
    }


def hub_tags(version: Version) -> list[str]:
    """What the Hub makes tags of: library, format, family, base model, licence; and the adapter's own."""
    tags = ["peft", "safetensors", version.family]
    if version.base_model is not None:
        tags += [f"base_model:{version.base_model}", f"base_model:adapter:{version.base_model}"]
    if version.license is not None:
        tags.append(f"license:{version.license}")
    return list(dict.fromkeys([*tags, *version.tags]))


def _base(version: Version) -> Json | None:
    if version.base_model is None:
        return None
    return {"relation": "adapter", "models": [{"_id": "", "id": version.base_model}]}
