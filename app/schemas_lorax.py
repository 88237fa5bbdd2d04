"""Request bodies of LoRAX's generation calls. A field that changes the answer and is not supported is refused by name.

`api_token` is taken and not looked at: who may use an adapter follows from the key of the request itself.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, model_validator

from app.answer_forms import as_json
from app.schemas import Body, SourceBody, Text
from app.schemas_openai import Stop
from serving.constrain import Constraint

STRATEGIES: dict[str, str] = {"ties": "ties", "dare_linear": "dare", "dare_ties": "dare_ties"}
"""LoRAX's strategies that are merges, and the methods here that do the same on the updates."""


def _only_hub(value: str | None) -> str | None:
    if value not in (None, "hub"):
        raise ValueError("adapters come from this registry: leave it out, or say 'hub'")
    return value


def _not_supported(value: Any) -> Any:
    if value not in (None, False):
        raise ValueError("it is not supported")
    return value


def _no_template(value: bool) -> bool:
    if value:
        raise ValueError("it is not supported; /v1/chat/completions fills the chat template")
    return value


class MergedAdapters(Body):
    """Several adapters for one request."""

    ids: list[Text] = Field(min_length=1)
    weights: list[float] = Field(default_factory=list)
    merge_strategy: Literal["linear", "ties", "dare_linear", "dare_ties"] | None = None
    density: float = Field(0.0, ge=0, le=1, description="Of the pruning strategies; `linear` does not read it.")
    majority_sign_method: Literal["total", "frequency"] | None = None

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.weights and len(self.weights) != len(self.ids):
            raise ValueError(f"there are {len(self.ids)} ids and {len(self.weights)} weights")
        return self

    @property
    def sources(self) -> list[SourceBody]:
        """The weighted set."""
        weights = self.weights or [1.0] * len(self.ids)
        return [SourceBody(ref=ref, weight=weight) for ref, weight in zip(self.ids, weights, strict=True)]

    @property
    def recipe(self) -> dict[str, Any]:
        """The body of POST /v1/merges that makes an adapter of a strategy that is a merge; its name is missing."""
        method = STRATEGIES[self.merge_strategy or ""]
        sources = [{"ref": source.ref, "weight": source.weight} for source in self.sources]
        return {"method": method, "sources": sources, "params": {"density": self.density or 0.5}}


class LoraxFormat(Body):
    """JSON, of any form or of a schema's."""

    type: Literal["json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @property
    def constraint(self) -> Constraint:
        """What the answers must be."""
        return Constraint("json_schema", as_json(self.schema_ or {"type": "object"}))


class Parameters(Body):
    """How to generate. Without sampling parameters the likeliest token is taken."""

    adapter_id: Text | None = None
    adapter_source: Annotated[str | None, AfterValidator(_only_hub)] = None
    merged_adapters: MergedAdapters | None = None
    api_token: str | None = Field(None, max_length=4096)
    best_of: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: Annotated[float | None, AfterValidator(_not_supported)] = None
    do_sample: StrictBool = False
    max_new_tokens: int | None = Field(None, ge=1)
    ignore_eos_token: StrictBool = False
    return_full_text: StrictBool | None = None
    stop: list[Stop] = Field(default_factory=list, max_length=16)
    truncate: int | None = Field(None, ge=1)
    watermark: Annotated[bool, AfterValidator(_not_supported)] = False
    details: StrictBool = False
    decoder_input_details: StrictBool = False
    return_k_alternatives: int | None = Field(None, ge=1, le=20)
    apply_chat_template: Annotated[bool, AfterValidator(_no_template)] = False
    seed: int | None = Field(None, ge=0, lt=2**63)
    response_format: LoraxFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.adapter_id is not None and self.merged_adapters is not None:
            raise ValueError("give at most one of adapter_id and merged_adapters")
        if (self.best_of or 1) > 1 and self.seed is not None:
            raise ValueError("seed must not be set when best_of is above 1")
        if (self.best_of or 1) > 1 and not self.samples:
            raise ValueError("sampling must be on (do_sample) when best_of is above 1")
        return self

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: when it is said, or when something is that has no meaning otherwise."""
        if self.temperature == 0:
            return False
        shaped = self.temperature not in (None, 1.0) or self.top_k is not None or self.top_p not in (None, 1.0)
        return self.do_sample or shaped


class LoraxBody(Body):
    """POST /generate and /generate_stream."""

    inputs: str = Field(min_length=1)
    parameters: Parameters = Field(default_factory=Parameters)

    @property
    def user(self) -> str | None:
        """The protocol has no users."""
        return None

    @property
    def timeout_s(self) -> float | None:
        """Nor deadlines."""
        return None


class LoraxCompatBody(LoraxBody):
    """POST /, which LoRAX's own client uses for both."""

    stream: StrictBool = False
