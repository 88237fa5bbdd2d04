"""Request bodies of the registry and of merges. Unknown fields, NaN and Inf are refused, not ignored."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from merging.ranks import Rank
from merging.weights import Weight

KEEPABLE = r"^[^\x00]*$"
"""Text that both databases keep and look for: PostgreSQL refuses the character NUL, so it is refused everywhere."""

FreeText = Annotated[str, StringConstraints(pattern=KEEPABLE)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=KEEPABLE)]
TAG = r"^[A-Za-z0-9][A-Za-z0-9._:/ -]{0,63}$"
Tag = Annotated[str, StringConstraints(pattern=TAG)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=KEEPABLE)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_NUMBERS = (int, float, int | None, float | None)


class Body(BaseModel):
    """What every request body has in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, document: Any) -> Any:
        given = document if isinstance(document, dict) else {}
        for name, field in cls.model_fields.items():
            if isinstance(given.get(name), bool) and field.annotation in _NUMBERS:  # pydantic would take it for 1
                raise ValueError(f"'{name}' should be a number, not a boolean")
        return document


class VersionUpload(Body):
    """A version whose weights were uploaded before, by digest (or the form fields of a multipart upload)."""

    config: dict[str, Any] | None = Field(
        None, description="The content of adapter_config.json; not needed in kohya's, LyCORIS' or diffusers' spelling."
    )
    weights: Digest = Field(description="sha256:<hex> of an uploaded adapter_model.safetensors.")
    card: str | None = Field(None, description="README.md, Markdown.")
    tokenizer: dict[str, Any] | str | None = Field(
        None, description="tokenizer.json, as an object or as text; needed where the adapter adds tokens."
    )
    license: Text | None = Field(None, description="Licence, best as an SPDX id.")
    tags: list[Tag] = Field(default_factory=list, description="Free words to find the adapter by.")
    base_model: Text | None = Field(
        None, description="Overrides base_model_name_or_path, which is often a folder of the trainer's."
    )
    head: Digest | None = Field(
        None, description="sha256:<hex> of an uploaded classification head: weight [classes, width] and perhaps bias."
    )
    classes: list[ClassName] = Field(default_factory=list, description="What the head's classes are called, in order.")


class VersionForm(Body):
    """The plain fields of a multipart upload."""

    license: Text | None = None
    tags: list[Tag] = Field(default_factory=list)
    base_model: Text | None = None
    classes: list[ClassName] = Field(default_factory=list)

    @field_validator("license", "base_model", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: object) -> object:
        return value or None

    @field_validator("tags", "classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Forms have no lists: tags and classes come separated by commas."""
        if isinstance(value, str):
            return [tag.strip() for tag in value.split(",") if tag.strip()]
        return value


class AliasBody(Body):
    """Where an alias points."""

    version: int = Field(ge=1, description="Number of the version that the alias shall name.")


class TagsBody(Body):
    """The tags of an adapter, replacing those it has."""

    tags: list[Tag]


class SourceBody(Body):
    """One adapter and its weight in a set."""

    ref: Text = Field(description="namespace/name, namespace/name@3, namespace/name:alias or sha256:<hex>.")
    weight: float | None = Field(None, description="Factor of this adapter's update; 1 if it is not given.")


def _as_sources(value: object) -> object:
    """A plain reference stands for a source of which only the reference is given."""
    if isinstance(value, list):
        return [{"ref": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[list[SourceBody], BeforeValidator(_as_sources)]


def _finite(value: Any) -> Any:
    """Numbers that vary over the model are finite already; a plain one has to be asked."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("every number must be finite; found NaN or Inf")
    return value


MergeWeight = Annotated[Weight, AfterValidator(_finite)]


class MergeSourceBody(Body):
    """One adapter and its weight in a merge."""

    ref: Text = Field(description="namespace/name, namespace/name@3, namespace/name:alias or sha256:<hex>.")
    weight: MergeWeight | None = Field(None, description="Factor of this adapter's update; 1 if it is not given.")


MergeSources = Annotated[list[MergeSourceBody], BeforeValidator(_as_sources)]


class MergeBody(Body):
    """A recipe and the name that its result shall have."""

    name: Text = Field(description="namespace/name of the result.")
    sources: MergeSources = Field(min_length=1, description="References, or objects with ref and weight.")
    weights: list[MergeWeight] | None = Field(None, description="One weight a source, where sources have none.")
    method: Text = "sum"
    rank: Annotated[Rank, AfterValidator(_finite)] = Field(
        None, description="Rank of the result, the same for all modules or varying; null: the method's own."
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the method.")
    space: Literal["core", "dense", "factors"] | None = Field(
        None, description="Where the method runs, if it can choose; see /v1/merge-methods."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    conversion_rank: int | None = Field(
        None, ge=1, le=65_536, description="What a source's ΔW of full rank (DoRA, IA³, …) is cut to; 64 unless said."
    )
    export: Literal["lora", "family"] = Field(
        "lora",
        description='What the result is written as: LoRA, or "family": the sources\' own, where sums stay in it.',
    )
    seed: int = Field(0, ge=0, lt=2**63)
    priority: int = Field(
        0, ge=-(2**31), lt=2**31, description="Jobs of higher priority run first; the service bounds it."
    )

    @field_validator("params")
    @classmethod
    def _finite_params(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("every number must be finite; found NaN or Inf") from None
        return value


class OnlineMergeBody(Body):
    """A new adapter, the slots that there are, and how many there may be."""

    new: Text = Field(description="Reference of the adapter that arrives.")
    slots: list[Text] = Field(default_factory=list, description="References of the adapters kept so far.")
    budget: int = Field(ge=1, description="How many slots there may be.")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="Cosine from which the new one joins a slot although one is free."
    )
    method: Text = Field("sum", description="How a slot and the new adapter are merged, at n/(n+1) and 1/(n+1).")
    rank: Any = Field(None, description="Rank of the slot, as for a merge.")


class WhatIfBody(Body):
    """A merged version or a recipe, and what shall be different. What is not given stays as it is."""

    ref: Text | None = Field(None, description="A merged version, whose recipe is to be changed.")
    recipe: MergeBody | None = Field(
        None, description="Or a recipe, as POST /v1/merges takes it; nothing is made under its name."
    )
    weights: dict[Text, Any] = Field(
        default_factory=dict, description="New weights by source; of equal ones, ref#2 is the second."
    )
    drop: list[Text] = Field(default_factory=list, description="Sources to leave out, named likewise.")
    add: MergeSources = Field(default_factory=list, description="Sources to take in.")
    method: Text = "sum"
    rank: Any = Field(None, description="As in POST /v1/merges; null: the method's own.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="All parameters of the method; another method starts from its own."
    )
    space: Literal["core", "dense", "factors"] | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**63)
    modules: StrictBool = Field(False, description="Whether the answer lists every module.")
