"""What can be chosen about a distillation, and three sets of choices.

Every default is the paper's (LoRA Recycle, arXiv 2412.02220) or, where the paper is silent, its released code's; the
descriptions name what is ours. `PAPER` needs a GPU, `BENCHMARK` fits two CPU cores, `SMALL` is for continuous
integration: small images, few steps.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Frozen, complete, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DescentParams(Strict):
    """How inputs are optimised, images as well as texts."""

    steps: Count = Field(2000, description="Adam steps for each batch of inputs")
    rate: float = Field(0.25, gt=0, description="Adam's learning rate")
    decay: bool = Field(
        False, description="whether the rate falls to 0 along half a cosine (ours), or stays as it is (the paper's)"
    )
    betas: tuple[Share, Share] = Field((0.5, 0.99), description="Adam's betas; the released code's")
    batch: Count = Field(100, description="most inputs optimised together; statistics are of the batch")
    seed: int | None = Field(None, ge=0, description="of the inputs, where it differs from the distillation's")


class InversionParams(DescentParams):
    """Step 1: surrogate images out of an adapter and its head (eq. 1 and 2)."""

    feature_weight: float = Field(
        0.01,
        ge=0,
        description="weight α_R of the regulariser on feature statistics; the paper's is on a ResNet's BatchNorm, ours"
        " on what enters each block's attention",
    )
    tv_weight: float = Field(0.0, ge=0, description="weight of the mean squared difference of neighbouring pixels")
    l2_weight: float = Field(0.0, ge=0, description="weight of the mean squared pixel")
    grain: Count = Field(
        1,
        description="how many pixels of the image one of the optimised grid is wide; above 1 the grid is interpolated"
        " (ours: without it, few steps leave the noise that they began with)",
    )
    jitter: Share = Field(0.125, description="largest cyclic shift at each step, as a share of the image's sides")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip at each step")
    prune: dict[int, Share] = Field(
        {-1: 0.75}, description="block (negative: from the end) -> share of patch tokens dropped there"
    )
    prune_from: Share = Field(0.25, description="share of the steps before tokens are pruned; the released code's")
    mask: dict[int, Share] | None = Field(
        None,
        description="pruning that says which patches meta-training sees; default: as in inversion. {}: all of them",
    )

    @property
    def masking(self) -> dict[int, float]:
        return self.prune if self.mask is None else self.mask


class MetaParams(Strict):
    """Step 2: one adapter that imitates all teachers as a prototype classifier (eq. 3 and 4)."""

    iterations: Count = Field(
        240_000, description="tasks, one at each step; the released scripts', the paper gives none"
    )
    cycle: Count = Field(100, description="steps of one learning-rate cycle, after which a checkpoint is written")
    warmup: Count = Field(25, description="of these, steps of linear warm-up")
    low_rate: float = Field(1e-5, gt=0, description="learning rate at a cycle's ends")
    high_rate: float = Field(1e-3, gt=0, description="learning rate at the end of its warm-up")
    shots: Count = Field(1, description="support images of each class")
    queries: Count = Field(15, description="query images of each class")
    ways: int = Field(5, ge=2, description="classes of an interpolated task (eq. 4)")
    interpolation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of tasks whose classes come from different sources (ours; the paper gives none)",
    )
    distinct: bool = Field(
        False,
        description="whether an interpolated task never holds two classes of one name (ours; the paper draws any)",
    )
    mixed: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="most that another query's input counts in a query, blended at random up to that, as is what the"
        " student shall say (ours, after mixup); 0: queries are as they are",
    )
    distance: Literal["euclidean", "squared"] = Field(
        "euclidean", description="of queries to prototypes: the paper's, or the released code's squared one"
    )
    divergence: Literal["student_teacher", "teacher_student"] = Field(
        "student_teacher",
        description="KL(student ‖ teacher) as in the paper, or the released code's KL(teacher ‖ student)",
    )
    temperature: float = Field(1.0, gt=0, description="divides distances; 1 in the paper and its code")

    @model_validator(mode="after")
    def _warmup_fits(self) -> "MetaParams":
        if self.warmup >= self.cycle:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than the cycle ({self.cycle})")
        if self.low_rate > self.high_rate:
            raise ValueError(f"low_rate ({self.low_rate:g}) must not exceed high_rate ({self.high_rate:g})")
        return self


class CommonParams(Strict):
    """What distillations of images and of texts have in common."""

    rank: int = Field(4, ge=1, le=256, description="of the meta-adapter")
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1, description="endings of its modules' names")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the base model's weights and activations"
    )
    seed: int = Field(0, ge=0)
    inversion: DescentParams = DescentParams()
    meta: MetaParams = MetaParams()

    @property
    def inversion_seed(self) -> int:
        return self.seed if self.inversion.seed is None else self.inversion.seed


class RecycleParams(CommonParams):
    """A whole distillation."""

    image_px: int = Field(224, ge=1, le=1024, description="side of the surrogate images")
    images_per_class: int | None = Field(
        None, ge=2, description="surrogate images of each source's class; default: shots + queries"
    )
    calibration: int = Field(
        256,
        ge=2,
        le=4096,
        description="generated images from which the expected feature statistics are taken, unless they are given",
    )
    generated: Literal["leaves", "shapes"] = Field(
        "shapes", description="what the generated images show: discs everywhere, or mostly things on a plain ground"
    )
    inversion: InversionParams = InversionParams()

    @model_validator(mode="after")
    def _images_suffice(self) -> "RecycleParams":
        needed = self.meta.shots + self.meta.queries
        if self.per_class < needed:
            raise ValueError(f"images_per_class ({self.per_class}) must be at least shots + queries ({needed})")
        return self

    @property
    def per_class(self) -> int:
        return self.images_per_class or self.meta.shots + self.meta.queries


class TextInversionParams(DescentParams):
    """Surrogate texts out of an adapter and its label words or head; ours, and so are all defaults."""

    steps: Count = Field(100, description="Adam steps for each batch of texts")
    rate: float = Field(0.1, gt=0, description="Adam's learning rate, in standard deviations of the embeddings")
    feature_weight: float = Field(
        0.01, ge=0, description="weight of the distance of a batch's mean and variance from those of all embeddings"
    )
    nearest_weight: float = Field(
        0.1, ge=0, description="weight of the mean squared distance of every token from the nearest real one"
    )
    tokens: Literal["free", "decoded", "real"] = Field(
        "free",
        description="what surrogates are made of: embeddings that no token need have; those, replaced by the nearest"
        " real tokens at the end; or real tokens at every step, the gradient passed straight through",
    )
    masked: Share = Field(
        0.0,
        description="share of a text's tokens, those that matter least to the teacher, that meta-training leaves out",
    )


class TextRecycleParams(CommonParams):
    """A whole distillation of text adapters; our extension of the paper's method."""

    length: int = Field(12, ge=1, le=256, description="tokens of a surrogate text")
    texts_per_class: int | None = Field(
        None, ge=2, description="surrogate texts of each source's class; default: shots + queries"
    )
    inversion: TextInversionParams = TextInversionParams()
    meta: MetaParams = MetaParams(iterations=600, queries=7)

    @model_validator(mode="after")
    def _texts_suffice(self) -> "TextRecycleParams":
        needed = self.meta.shots + self.meta.queries
        if self.per_class < needed:
            raise ValueError(f"texts_per_class ({self.per_class}) must be at least shots + queries ({needed})")
        return self

    @property
    def per_class(self) -> int:
        return self.texts_per_class or self.meta.shots + self.meta.queries


PAPER = RecycleParams()
BENCHMARK = RecycleParams(
    image_px=112,
    images_per_class=6,
    inversion=InversionParams(steps=40, batch=30, grain=3, decay=True),
    meta=MetaParams(iterations=400, queries=5),
)
SMALL = RecycleParams(
    image_px=56,
    images_per_class=6,
    calibration=32,
    inversion=InversionParams(steps=20, batch=30, tv_weight=0.05),
    meta=MetaParams(iterations=40, cycle=20, warmup=5, queries=5),
)
