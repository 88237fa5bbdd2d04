"""What can be wrong with a merge: one class for each kind, one sentence for each case.

MergeError
├── UnknownMethod      no such merge method
├── BadParams          a parameter that the method does not have, or a value it does not take
├── BadWeights         weights that are not finite, all zero, or not one for each source
├── BadRank            a target rank that the method cannot give
├── BadSpace           a space that the method cannot run in
├── BaseMismatch       sources on different base models
├── ModuleMismatch     sources whose shapes differ for one module
├── NotMergeable       a source that is not plain LoRA
├── ExtrasConflict     biases, whole tensors or tokens that one PEFT file cannot hold together
├── TokenConflict      tokenizers that contradict each other
├── MergeCancelled     the caller asked to stop
└── RecycleError       what a distillation can meet: recycle/errors.py
"""

from collections.abc import Sequence


class MergeError(Exception):
    """Root of everything that this room raises on purpose."""


class UnknownMethod(MergeError):
    """The recipe names a method that does not exist."""

    def __init__(self, method: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no merge method '{method[:80]}'; known are {', '.join(known)}")
        self.known = list(known)


class BadParams(MergeError):
    """A parameter of the method is unknown, of the wrong type or out of range."""

    def __init__(self, method: str, field: str, problem: str, known: Sequence[str]) -> None:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        super().__init__(f"parameter '{field[:80]}' of method '{method}': {problem}; {takes}")
        self.field = field
        self.known = list(known)


class BadWeights(MergeError):
    """The sources' weights cannot be used."""


class BadRank(MergeError):
    """The target rank cannot be given."""


class BadSpace(MergeError):
    """The method does not run in the space asked for."""

    def __init__(self, method: str, space: str, known: Sequence[str]) -> None:
        super().__init__(f"method '{method}' does not run in space '{space}'; it runs in {' or '.join(known)}")
        self.known = list(known)


class BaseMismatch(MergeError):
    """Two sources were trained on different base models."""

    def __init__(self, left: str, left_base: str | None, right: str, right_base: str | None) -> None:
        super().__init__(
            f"'{left}' is an adapter of {_named(left_base)}, '{right}' of {_named(right_base)};"
            " only adapters of one base model can be merged"
        )


class ModuleMismatch(MergeError):
    """One module has different shapes in two sources."""

    def __init__(self, module: str, left: str, left_shape: tuple[int, int], right: str, right_shape: tuple[int, int]):
        super().__init__(
            f"module '{module}' maps {left_shape[1]} inputs to {left_shape[0]} outputs in '{left}', but"
            f" {right_shape[1]} to {right_shape[0]} in '{right}'; the sources were trained on models of different size"
        )
        self.module = module


class NotMergeable(MergeError):
    """A source holds something that no low-rank merge can carry."""

    def __init__(self, ref: str, obstacles: Sequence[str]) -> None:
        super().__init__(f"'{ref}' cannot be merged: " + "; ".join(obstacles))
        self.obstacles = list(obstacles)


class ExtrasConflict(MergeError):
    """Sources change one tensor in ways that cannot be added, or that one PEFT adapter cannot hold together."""

    def __init__(self, tensor: str, how: str) -> None:
        super().__init__(f"these cannot be merged into one PEFT adapter: '{tensor}' {how}")
        self.tensor = tensor


class TokenConflict(MergeError):
    """Tokenizers of sources, or of a source and the base model, that no common tokenizer can stand for."""

    def __init__(self, token: str | None, how: str) -> None:
        super().__init__(f"these tokenizers contradict each other: {how}")
        self.token = token


class MergeCancelled(MergeError):
    """The merge was stopped between two modules, because its caller asked for it."""

    def __init__(self) -> None:
        super().__init__("the merge was cancelled; finished modules are kept and it can be continued")


def _named(base: str | None) -> str:
    return f"'{base}'" if base else "a base model that it does not name"
