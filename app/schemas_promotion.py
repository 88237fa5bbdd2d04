"""The body of a promotion: a merge, the prompts to compare on, and the bar."""

from typing import Self

from pydantic import Field, model_validator

from app.schemas import Body, MergeBody, Text
from app.schemas_openai import Message


class Bar(Body):
    """What the merged version must reach for the alias to move. At least one of the two."""

    agreement: float | None = Field(
        None, ge=0, le=1, description="Least share of the set's own tokens that the merged version would choose too."
    )
    loss: float | None = Field(
        None, ge=0, description="Most nats a token that the set's own answers lose in likelihood, on average."
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.agreement is None and self.loss is None:
            raise ValueError("a bar names agreement, loss, or both")
        return self


class PromotionBody(MergeBody):
    """POST /v1/promotions: the set in use as `sources`, how to merge it, and when to move the alias."""

    alias: Text = Field("production", description="Alias of `name` that moves to the merged version.")
    prompts: list[str | list[Message]] | None = Field(
        None, min_length=1, max_length=1024, description="Texts or conversations; null: those that were logged."
    )
    max_tokens: int = Field(32, ge=1, le=1024, description="Length of each answer that is compared.")
    bar: Bar = Field(description="What must be reached for the alias to move.")
