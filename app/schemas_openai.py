"""Request bodies of generation, in OpenAI's words, with two extensions: `adapters` and `top_k`.

A field of OpenAI's that is not listed here is refused by name: an answer that ignored it would be wrong.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from app.schemas import Body, Sources, Text

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Count = Annotated[int, Field(ge=1)]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = Field(False, description="Send a last chunk that holds the token counts.")


class GenerateBody(Body):
    """What both generation calls share."""

    model: Text = Field(description="The base model's id or an adapter reference.")
    adapters: Sources | None = Field(
        None, description="A weighted set of adapters; `model` is then the base. An empty list is the base."
    )
    max_tokens: Count | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="Sample among the k likeliest tokens only.")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Bias] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] = Field(default_factory=list, max_length=16)
    n: Count = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="Who asks; accepted, not stored.")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        if isinstance(value, str):
            return [value]
        return [] if value is None else value

    @field_validator("temperature", "top_p", "n", "presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _null_is_default(cls, value: object, info: object) -> object:
        """OpenAI's schema lets these be null."""
        name = getattr(info, "field_name", "")
        return cls.model_fields[name].default if value is None else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _no_bias(cls, value: object) -> object:
        return {} if value is None else value


class TextPart(Body):
    """One piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart] = Field(description="A string, or a list of text parts.")
    name: str | None = Field(None, max_length=64)

    @field_validator("content", mode="before")
    @classmethod
    def _one_part(cls, value: object) -> object:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @property
    def text(self) -> str:
        """The content as one string."""
        return "".join(part.text for part in self.content)


class ChatBody(GenerateBody):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = Field(None, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionBody(GenerateBody):
    """POST /v1/completions."""

    prompt: list[str] | list[list[TokenId]] = Field(
        min_length=1, description="A string, a list of strings, a list of token ids, or a list of such lists."
    )
    logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """One prompt becomes a list of one, so that what follows knows two forms, not four."""
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and all(_is_id(item) for item in value):
            return [value]
        lists = isinstance(value, list) and all(isinstance(item, list) and all(map(_is_id, item)) for item in value)
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not lists and not texts:
            raise ValueError("a prompt is a string, a list of strings, a list of token ids or a list of such lists")
        return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
