"""Request bodies of generation, in OpenAI's words, with `adapters`, `combine` and what vLLM's users know beside them.

A field that is not listed here is refused by name: an answer that ignored it would be wrong. Null asks for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StringConstraints, field_validator, model_validator

from app.answer_forms import ResponseFormat, StructuredOutputs, constraint_of
from app.schemas import Body, Sources, Text
from serving.constrain import Constraint

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100, strict=True)]  # true is no number
Count = Annotated[int, Field(ge=1)]


def _no_tools(value: object) -> None:
    if value not in (None, "none", False):  # what changes nothing goes through
        raise ValueError("calling tools is not supported; response_format gives answers a form that programs can read")


NoTools = Annotated[None, BeforeValidator(_no_tools)]


# OpenAI's schema lets these be null, which means their defaults.
NULLABLE = (
    "temperature", "top_p", "min_p", "repetition_penalty", "n", "presence_penalty", "frequency_penalty", "logit_bias",
    "stop_token_ids", "ignore_eos", "min_tokens", "stream",
)  # fmt: skip


class Sent(Body):
    """A document of an OpenAI client: clients send whole objects, members that nobody set as null, and back the
    messages of answers (`refusal: null`)."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {name: value for name, value in document.items() if value is not None or name in cls.model_fields}


class StreamOptions(Sent):
    """Options of a streamed answer."""

    include_usage: StrictBool = Field(False, description="Send a last chunk that holds the token counts.")


class GenerateBody(Sent):
    """What both generation calls share."""

    model: Text = Field(description="The base model's id or an adapter reference.")
    adapters: Sources | None = Field(
        None, description="A weighted set of adapters; `model` is then the base. An empty list is the base."
    )
    combine: Literal["sum", "ensemble"] = Field(
        "sum",
        description="What the set means. `sum`: all updates are applied at once. `ensemble`: each token is chosen from"
        " the members' mean prediction, weights being shares, and the answer says how uncertain it is; the base model"
        " may be a member.",
    )
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="Sample among the k likeliest tokens only; 0 or -1: all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Leave out tokens below this share of the likeliest one's.")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="Above 1: tokens of prompt and answer become less likely."
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Bias] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] = Field(default_factory=list, max_length=16)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=256, description="End the answer.")
    ignore_eos: StrictBool = Field(False, description="Go on after the model's own end tokens.")
    min_tokens: int = Field(0, ge=0, description="No end token and no stop string ends the answer earlier.")
    response_format: ResponseFormat | None = Field(None, description="text, json_object or json_schema.")
    structured_outputs: StructuredOutputs | None = Field(None, description="One of json, regex, choice.")
    n: Count = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(
        None, max_length=512, description="Who asks; not stored. The users of one client address take turns."
    )
    timeout_s: float | None = Field(
        None, gt=0, description="Seconds that the answer may take, waiting included; an error ends it then."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        if isinstance(value, str):
            return [value]
        return [] if value is None else value

    @field_validator(*NULLABLE, mode="before")
    @classmethod
    def _null_is_default(cls, value: object, info: Any) -> object:
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True, validated_data={}) if value is None else value

    @field_validator("structured_outputs")
    @classmethod
    def _one_form(cls, value: object, info: Any) -> object:
        form = info.data.get("response_format")
        if value is not None and form is not None and form.type != "text":
            raise ValueError("response_format gives the answer another form already")
        return value

    @property
    def constraint(self) -> Constraint | None:
        """What the answers must be."""
        return constraint_of(self.response_format, self.structured_outputs)


class TextPart(Sent):
    """One piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Sent):
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
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: StrictBool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    add_generation_prompt: StrictBool | None = Field(
        None, description="Open the assistant's turn (vLLM's name). Default: true, unless continue_final_message."
    )
    continue_final_message: StrictBool = Field(
        False, description="Go on with the last message instead of answering it."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables for the base model's chat template."
    )
    tools: NoTools = None
    tool_choice: NoTools = None
    parallel_tool_calls: NoTools = None
    functions: NoTools = None
    function_call: NoTools = None

    @field_validator("continue_final_message")
    @classmethod
    def _not_both(cls, value: bool, info: Any) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError("the last message is either continued or answered (add_generation_prompt)")
        return value


class CompletionBody(GenerateBody):
    """POST /v1/completions."""

    prompt: list[str] | list[list[TokenId]] = Field(
        min_length=1, description="A string, a list of strings, a list of token ids, or a list of such lists."
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="With echo: also of the prompt's own tokens.")
    echo: StrictBool = Field(
        False, description="The prompt comes before the answer; with max_tokens 0 it is only scored."
    )
    best_of: int | None = Field(None, ge=1, description="n, if given: every answer that is made is returned.")

    @field_validator("echo", mode="before")
    @classmethod
    def _no_echo(cls, value: object, info: Any) -> object:
        if info.data.get("max_tokens") == 0 and not value:
            raise ValueError("it must be true where max_tokens is 0, or there is nothing to answer")
        return False if value is None else value

    @field_validator("best_of")
    @classmethod
    def _all_of_them(cls, value: int | None, info: Any) -> int | None:
        if value not in (None, info.data.get("n")):
            raise ValueError("only n itself is possible; ask for n answers with logprobs and choose among them")
        return value

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
