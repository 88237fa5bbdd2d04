"""The recipe: what a merge is asked to be. Its digest, with the sources' digests, names the result.

Two recipes with the same digest give the same bytes on one machine, so a repeat is answered from the registry. The
name of the result is no part of it.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deltas.adapter import CONVERSION_RANK
from merging.errors import BadWeights
from merging.method import LARGEST_NUMBER, resolve_method
from merging.ranks import Rank, plain_rank
from merging.weights import Weight, numbers_of, plain_weight

# Part of every digest: raised when the same recipe would give other bytes than before.
ENGINE_VERSION = 3

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
SpaceChoice = Literal["core", "dense", "factors"]
Export = Literal["lora", "family"]


class Source(BaseModel):
    """One source adapter and its merge coefficient (negative subtracts it)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ref: str = Field(min_length=1, max_length=400, description="adapter reference, for example team/spam@2")
    weight: Weight = Field(default=1.0, description="merge coefficient; negative subtracts the update")


class Recipe(BaseModel):
    """Sources, method, target rank, parameters, dtype and seed.

    `rank`: an integer; "max" (the largest source rank of each module); "sum" (all ranks, exact); a share of the energy
    between 0 and 1, such as 0.99 (per module, the smallest rank that keeps it); what varies over the model
    (`merging/ranks.py`); or null for the method's own default.
    `space`: where a coordinate-wise method runs, "core" (the joint bases of the sources), "dense" (the papers' ΔW) or
    "factors" (PEFT's arithmetic on A and B apart, an approximation); null for the method's own.
    `layers`: how many blocks each stack of the model has. The plan fills it in where a gradient or the method depends
    on it, so that the recipe means the same wherever it is run again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    method: str = "sum"
    rank: Rank = None
    params: dict[str, Any] = {}
    space: SpaceChoice | None = None
    dtype: Dtype = "auto"
    conversion_rank: int = Field(
        default=CONVERSION_RANK, ge=1, le=65_536, description="what a source's ΔW of full rank (DoRA, IA³, …) is cut to"
    )
    export: Export = Field(
        default="lora",
        description='what the result is written as: "lora", or "family", the sources\' own (IA³, MiSS, HiRA, GLoRA)',
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    layers: dict[str, Annotated[int, Field(ge=1)]] | None = None

    @property
    def weights(self) -> list[Any]:
        """The sources' weights as JSON says them: numbers, gradients, rules."""
        return [plain_weight(source.weight) for source in self.sources]

    def check_weights(self) -> None:
        """
        Raises:
            BadWeights: if a weight is NaN or infinite, or larger than any result could hold, or all are zero.
        """
        numbers = [(source.ref, number) for source in self.sources for number in numbers_of(source.weight)]
        for ref, number in numbers:
            if not math.isfinite(number):
                raise BadWeights(f"the weight of '{ref}' is {number}; weights must be finite numbers")
            if abs(number) > LARGEST_NUMBER:
                raise BadWeights(f"the weight of '{ref}' is {number:g}; weights lie within ±{LARGEST_NUMBER:g}")
        if not any(number for _, number in numbers):
            raise BadWeights("all weights are zero; the merge would be the base model itself")

    def canonical(self, source_digests: Sequence[str]) -> dict[str, Any]:
        """The recipe with everything that decides the bytes: sources by digest, all parameters with their defaults.

        Raises:
            ValueError: if there is not one digest for each source.
            UnknownMethod, BadParams: as `resolve_method`.
        """
        method, params = resolve_method(self.method, self.params)
        pairs = zip(self.weights, source_digests, strict=True)
        # Left out while it is the default, as digests from before it existed are.
        later: dict[str, Any] = {}
        if self.conversion_rank != CONVERSION_RANK:
            later["conversion_rank"] = self.conversion_rank
        if self.export != "lora":
            later["export"] = self.export
        return {
            **later,
            "engine": ENGINE_VERSION,
            "method": method.name,
            "params": params.model_dump(mode="json"),
            "space": self.space or method.space,
            "rank": plain_rank(self.rank) if self.rank is not None else method.default_rank,
            "dtype": self.dtype,
            "seed": self.seed,
            "sources": [{"digest": digest, "weight": weight} for weight, digest in pairs],
            # Absent unless the bytes depend on it: recipes without gradients keep the digests that they had.
            **({"layers": self.layers} if self.layers else {}),
        }

    def digest(self, source_digests: Sequence[str]) -> str:
        """sha256 (hex) of the canonical recipe."""
        text = json.dumps(self.canonical(source_digests), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
