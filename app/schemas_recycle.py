"""Request bodies of distillations, consent and predictions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from app.schemas import Body, Sources, Text

ProfileName = Literal["small", "benchmark", "paper"]


def _refs(value: object) -> object:
    """Sources may be written as in a merge, as objects with ref."""
    if isinstance(value, list):
        return [item["ref"] if isinstance(item, dict) and item.keys() == {"ref"} else item for item in value]
    return value


class DistillationBody(Body):
    """Adapters with heads, and how to distil them into one meta-adapter."""

    name: Text = Field(description="namespace/name of the result.")
    sources: Annotated[list[Text], BeforeValidator(_refs)] = Field(
        min_length=1, description="References of adapters with heads, whose owners allow inversion."
    )
    base: Text | None = Field(None, description="The vision base; null: the one that the sources were made for.")
    method: Literal["recycle"] = "recycle"
    profile: ProfileName = Field(
        "benchmark", description="Where parameters start: small (minutes), benchmark (an hour), paper (needs a GPU)."
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description='What differs from the profile, such as {"image_px": 84, "meta": {"iterations": 500}}.',
    )
    priority: int = Field(
        0, ge=-(2**31), lt=2**31, description="Jobs of higher priority run first; the service bounds it."
    )


class ConsentBody(Body):
    """What an adapter's owner allows others to find out about its training."""

    inversion: StrictBool = Field(
        description="Whether distillations may make images out of this adapter and its head: they show its classes."
    )
    show_surrogates: StrictBool = Field(False, description="Whether these images are kept and may be looked at.")


class SupportBody(Body):
    """A labelled image."""

    image: str = Field(min_length=1, description="PNG, JPEG or WebP, in base64.")
    label: Text


class PredictionForm(Body):
    """What a prediction asks for beside its images."""

    model: Text | None = Field(None, description="The vision base or an adapter reference; null: the vision base.")
    adapters: Sources | None = Field(None, description="A weighted set of adapters; `model` is then the base.")
    combine: Literal["sum", "ensemble"] = Field(
        "sum",
        description="What the set means. `sum`: all updates are applied at once. `ensemble`: the members' mean"
        " prediction, weights being shares, with what it says about uncertainty; the base may be a member.",
    )
    px: int | None = Field(
        None,
        ge=1,
        description="Side that images are resized to, a multiple of the base's patch; null: what the first adapter was"
        " distilled at, else 16 patches.",
    )
    distance: Literal["euclidean", "squared"] = Field("euclidean", description="Of queries to prototypes.")
    temperature: float = Field(1.0, gt=0, description="Divides distances; larger is less sure.")


class PredictionBody(PredictionForm):
    """POST /v1/predictions as JSON."""

    support: list[SupportBody] = Field(min_length=1, description="Labelled images, at least one of each class.")
    queries: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="Images to classify, in base64."
    )
