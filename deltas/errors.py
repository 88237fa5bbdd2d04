"""What can be wrong with an adapter: one class for each kind, one sentence for each case.

DeltaError
├── BadFile            not a safetensors file that can be trusted
├── BadConfig          adapter_config.json cannot be understood
├── BadTokenizer       tokenizer.json cannot be understood
├── BadTensors         the tensors contradict each other or the config
├── NonFiniteTensor    NaN or Inf in a tensor
├── UnknownModule      a module that the base model does not have
├── ShapeMismatch      a module whose shape differs from the base model's
├── MissingBaseTensor  a conversion needs a base weight that the base model does not have
├── NotClosed          a weighted sum that its family cannot hold
├── NotLowRank         asked for the factors of an adapter that is not plain LoRA
├── UnknownRuntime     a server that adapters are not exported for
└── NotExportable      a server cannot be given this adapter
"""

from collections.abc import Sequence

MAX_KEYS = 64  # named by one error


class DeltaError(Exception):
    """Root of everything that this room raises on purpose."""


class BadFile(DeltaError):
    """The weights file is not a well-formed safetensors file."""


class BadConfig(DeltaError):
    """A field of adapter_config.json is missing, of the wrong type or out of range."""

    def __init__(self, sentence: str, field: str | None = None) -> None:
        super().__init__(sentence)
        self.field = field


class BadTokenizer(DeltaError):
    """tokenizer.json is not what the tokenizers library writes."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.field = "tokenizer"


class BadTensors(DeltaError):
    """Tensors that do not fit together, or do not fit adapter_config.json."""

    def __init__(self, sentence: str, key: str | None = None) -> None:
        super().__init__(sentence)
        self.key = key


class NonFiniteTensor(DeltaError):
    """A tensor holds NaN or Inf."""

    def __init__(self, key: str, count: int, size: int) -> None:
        super().__init__(
            f"tensor '{key}' holds NaN or Inf in {count} of its {size} entries; every entry must be finite"
        )
        self.key = key
        self.count = count
        self.size = size


class UnknownModule(DeltaError):
    """The adapter changes a module that its base model does not have. `keys`: tensors that match nothing there."""

    def __init__(
        self, module: str, base: str, unknown: int, total: int, near: list[str], keys: Sequence[str] = ()
    ) -> None:
        hint = f"; the nearest name there is '{near[0]}'" if near else ""
        super().__init__(
            f"module '{module}' does not exist in base model '{base}' ({unknown} of the adapter's {total} modules"
            f" do not){hint}; the adapter was trained on another model or its keys are misspelt"
        )
        self.module = module
        self.near = near
        self.keys = tuple(keys[:MAX_KEYS])


class ShapeMismatch(DeltaError):
    """The adapter's factors do not fit the base model's module."""

    def __init__(
        self, module: str, base: str, found: tuple[int, int], expected: tuple[int, int], *, resized: bool = False
    ) -> None:
        why = "its vocabulary was resized (added tokens)" if resized else "it was trained on a model of another size"
        super().__init__(
            f"module '{module}' of base model '{base}' maps {expected[1]} inputs to {expected[0]} outputs, but the"
            f" adapter's factors map {found[1]} to {found[0]}; {why}"
        )
        self.module = module


class MissingBaseTensor(DeltaError):
    """A conversion needs a tensor of the base model that is not in its files."""

    def __init__(self, tensor: str, base: str) -> None:
        super().__init__(f"base model '{base}' has no tensor '{tensor[:200]}', which this adapter's conversion needs")
        self.tensor = tensor


class NotClosed(DeltaError):
    """A weighted sum was asked for inside a parametrisation that it leaves."""


class NotLowRank(DeltaError):
    """The adapter cannot be used as plain LoRA factors; `obstacles` says why."""

    def __init__(self, obstacles: tuple[str, ...]) -> None:
        super().__init__("this adapter is not plain LoRA: " + "; ".join(obstacles))
        self.obstacles = obstacles


class UnknownRuntime(DeltaError):
    """Asked about a server whose rules are not known here."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"'{name[:80]}' is not a server that adapters are exported for; known are {', '.join(known)}")
        self.known = known


class NotExportable(DeltaError):
    """A server cannot be given what this adapter does; `reasons` say why."""

    def __init__(self, target: str, reasons: tuple[str, ...]) -> None:
        super().__init__(f"this adapter cannot be exported for {target}: {'; '.join(reasons)}")
        self.target = target
        self.reasons = reasons
