"""What can be wrong with a distillation: one class for each kind, one sentence for each case.

MergeError
└── RecycleError
    ├── VisionBaseUnavailable   a vision base that neither a folder nor a package holds
    ├── VisionBaseUnsupported   a vision model of a kind that is not known here
    ├── SourceUnusable          an adapter that is no plain LoRA of this base's linear layers
    ├── HeadMissing             an adapter without a classification head
    ├── HeadMismatch            a head that does not fit the base, or is no linear layer
    ├── TextBaseUnsupported     a language model of a kind that is not known here
    ├── BadTexts                texts without a token
    ├── BadImages               images of a form that the base does not take
    ├── BadEpisode              labels or counts that make no few-shot task
    ├── BadDistillation         parameters that do not go together with base or sources
    └── DistillationCancelled   the caller asked to stop
"""

from collections.abc import Sequence
from pathlib import Path

from merging.errors import MergeError


class RecycleError(MergeError):
    """Root of what a distillation raises on purpose."""


class VisionBaseUnavailable(RecycleError):
    """The vision base is in no folder that was searched, and no installed package carries it."""

    def __init__(self, name: str, searched: Sequence[Path]) -> None:
        super().__init__(
            f"vision base '{name[:200]}' is not here: it is no transformers folder, and no installed package carries it"
        )
        self.searched = [str(place) for place in searched]


class VisionBaseUnsupported(RecycleError):
    """The folder holds a model of another kind, or not all of it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"vision base '{name[:200]}' cannot be used: {reason}")


class TextBaseUnsupported(RecycleError):
    """The folder holds a language model of another kind, or not all of it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"text base '{name[:200]}' cannot be used for recycling: {reason}")


class SourceUnusable(RecycleError):
    """The source is no LoRA that this base can run."""

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(f"'{ref}' cannot be recycled: {reason}")


class HeadMissing(RecycleError):
    """The source comes without a classification head; without one there is nothing to invert."""

    def __init__(self, ref: str) -> None:
        super().__init__(
            f"'{ref}' has no classification head; recycling needs one, saved with the adapter (modules_to_save)"
            " or as a file beside it"
        )


class HeadMismatch(RecycleError):
    """The head is not a linear layer on this base's embedding."""

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(f"the head of '{ref}' {reason}")


class BadImages(RecycleError):
    """Images of a form that the base does not take."""


class BadTexts(RecycleError):
    """Texts that make no tokens."""


class BadEpisode(RecycleError):
    """Labels or counts that make no few-shot task."""


class BadDistillation(RecycleError):
    """Parameters that do not go together with the base or the sources."""


class DistillationCancelled(RecycleError):
    """The distillation was stopped, because its caller asked for it."""

    def __init__(self) -> None:
        super().__init__("the distillation was cancelled; what is finished is kept and it can be continued")
