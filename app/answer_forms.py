"""The form that a request gives its answers: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from app.schemas import Body
from serving.constrain import Constraint

ANY_OBJECT = '{"type":"object"}'

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
Schema = dict[str, Any]


class TextForm(Body):
    """Any text; the default."""

    type: Literal["text"]


class ObjectForm(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema in OpenAI's wrapping. It is always enforced, whatever `strict` says."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: Schema = Field(alias="schema", description="JSON Schema; what cannot be enforced is refused.")
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _is_json(cls, value: Schema) -> Schema:
        as_json(value)
        return value


class SchemaForm(Body):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextForm | ObjectForm | SchemaForm, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's spelling; exactly one of its members."""

    json_: Schema | None = Field(None, alias="json", description="JSON Schema of the answer.")
    regex: Pattern | None = Field(None, description="Regular expression that the whole answer matches.")
    choice: list[Pattern] | None = Field(None, min_length=1, max_length=1000, description="The possible answers.")

    @field_validator("json_", mode="before")
    @classmethod
    def _also_as_text(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError("it is not valid JSON") from None
        return value

    @field_validator("json_")
    @classmethod
    def _is_json(cls, value: Schema | None) -> Schema | None:
        if value is not None:
            as_json(value)
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if sum(part is not None for part in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("give exactly one of json, regex and choice")
        return self


def constraint_of(form: ResponseFormat | None, outputs: StructuredOutputs | None) -> Constraint | None:
    """What the answers must be; at most one of both is given."""
    if isinstance(form, ObjectForm):
        return Constraint("json_schema", ANY_OBJECT)
    if isinstance(form, SchemaForm):
        return Constraint("json_schema", as_json(form.json_schema.schema_))
    if outputs is None:
        return None
    if outputs.json_ is not None:
        return Constraint("json_schema", as_json(outputs.json_))
    return Constraint("regex", outputs.regex or "|".join(map(re.escape, outputs.choice or [])))


def as_json(schema: Schema) -> str:
    """The schema as text; its order counts, since properties are written in it."""
    try:
        return json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("a JSON schema holds finite numbers and is not nested without end") from None
