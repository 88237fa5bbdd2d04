"""What can go wrong while serving. Every error has fields and writes its own sentence.

ServingError
├── BaseError
│   ├── BaseUnavailable        no folder, no bundled package, no download
│   └── BaseUnsupported        its architecture cannot be served by this engine
├── AdapterError
│   ├── AdapterNotServable     the adapter itself says why it is no plain sum of updates
│   ├── AdapterModuleMissing   it changes modules that the base model does not have
│   ├── AdapterShapeMismatch   it was made for other shapes
│   ├── NoEffect               it would change no logit
│   ├── AdapterGone            its version was deleted while a request waited for it
│   ├── AdapterLoadFailed      the loader raised
│   ├── SetTooLarge            the set alone is larger than the pool, or than what pins leave of it
│   ├── PinsTooLarge           pinned adapters would be larger than the pool
│   ├── PoolBusy               no room for an adapter that no request waits for
│   └── NotResident            nothing to unload
├── RequestError
│   ├── EmptyPrompt
│   ├── TokenOutOfRange
│   ├── NotOnServers           what vLLM servers cannot do
│   ├── PromptTooLong
│   ├── InvalidSampling
│   ├── ConstraintUnsupported  a schema or pattern that cannot be enforced
│   ├── EnsembleEmpty          no members
│   ├── EnsembleWeights        a negative weight, or nothing but zeros
│   └── EnsembleTooLarge       more members than rows in a batch
└── EngineError
    ├── QueueFull
    ├── CallerQueueFull        one caller has too many requests waiting
    ├── DeadlineExceeded       the request took longer than it was given
    ├── EngineClosed
    ├── NoServer               none of the vLLM servers is up
    ├── ServerLost             a vLLM server went away in the middle of an answer
    ├── ServerRefused          a vLLM server does not do what it is asked
    ├── StepFailed             a forward pass raised; the thread lives on
    ├── ConstraintBroken       an answer's grammar came to its limits
    └── NonFiniteLogits        the weighted updates drove the model out of range
"""

from collections.abc import Sequence


class ServingError(Exception):
    """Root of everything that `serving` raises on purpose."""


class BaseError(ServingError):
    """The base model cannot be used."""


class BaseUnavailable(BaseError):
    def __init__(self, name: str, searched: Sequence[str], reason: str) -> None:
        self.name, self.searched, self.reason = name, tuple(searched), reason
        where = ", ".join(searched) or "no folder"
        super().__init__(
            f"Base model {name!r} was not found (searched: {where}) and could not be fetched: {reason}. "
            f"Put a transformers folder named {name.replace('/', '--')!r} into one of these folders."
        )


class BaseUnsupported(BaseError):
    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"Base model {name!r} cannot be served: {reason}.")


class AdapterError(ServingError):
    """One adapter, or one set of them, cannot be served; other requests are not touched."""

    digest: str


class AdapterNotServable(AdapterError):
    def __init__(self, digest: str, family: str, reasons: Sequence[str]) -> None:
        self.digest, self.family, self.reasons = digest, family, tuple(reasons)
        super().__init__(f"Adapter {digest} ({family}) cannot be served: {'; '.join(reasons)}.")


class AdapterModuleMissing(AdapterError):
    def __init__(self, digest: str, base: str, modules: Sequence[str]) -> None:
        self.digest, self.base, self.modules = digest, base, tuple(modules)
        shown = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
        super().__init__(f"Adapter {digest} changes modules that base model {base!r} does not have: {shown}.")


class AdapterShapeMismatch(AdapterError):
    def __init__(self, digest: str, base: str, module: str, found: tuple[int, int], expected: tuple[int, int]) -> None:
        self.digest, self.base, self.module = digest, base, module
        self.found, self.expected = found, expected
        super().__init__(
            f"Adapter {digest} updates {module} as {found[0]}x{found[1]} (out x in), "
            f"but in base model {base!r} it is {expected[0]}x{expected[1]}."
        )


class NoEffect(AdapterError):
    def __init__(self, digest: str, modules: Sequence[str], reason: str) -> None:
        self.digest, self.modules, self.reason = digest, tuple(modules), reason
        super().__init__(f"Adapter {digest} changes nothing: {reason}. Requests with it would be the base model's.")


class AdapterGone(AdapterError):
    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"Adapter {digest} is gone: its version was deleted before this request could begin.")


class AdapterLoadFailed(AdapterError):
    def __init__(self, digest: str, reason: str) -> None:
        self.digest, self.reason = digest, reason
        super().__init__(f"Adapter {digest} could not be loaded: {reason}")


class SetTooLarge(AdapterError):
    def __init__(self, digests: Sequence[str], size_bytes: int, budget_bytes: int, pinned_bytes: int = 0) -> None:
        self.digest, self.digests = digests[0], tuple(digests)
        self.size_bytes, self.budget_bytes, self.pinned_bytes = size_bytes, budget_bytes, pinned_bytes
        pool = f"the whole pool of {budget_bytes} bytes"
        if pinned_bytes:
            pool = f"the {budget_bytes - pinned_bytes} bytes that pinned adapters leave of the pool"
        super().__init__(f"The adapters {', '.join(digests)} need {size_bytes} bytes in memory, more than {pool}.")


class PinsTooLarge(AdapterError):
    def __init__(self, digest: str, size_bytes: int, pinned_bytes: int, budget_bytes: int) -> None:
        self.digest, self.size_bytes = digest, size_bytes
        self.pinned_bytes, self.budget_bytes = pinned_bytes, budget_bytes
        super().__init__(
            f"Adapter {digest} of {size_bytes} bytes cannot be pinned: {pinned_bytes} of the pool's {budget_bytes}"
            " bytes are pinned already; unpin or unload others first."
        )


class PoolBusy(AdapterError):
    def __init__(self, digest: str, size_bytes: int, free_bytes: int) -> None:
        self.digest, self.size_bytes, self.free_bytes = digest, size_bytes, free_bytes
        super().__init__(
            f"Adapter {digest} needs {size_bytes} bytes; what is not leased or pinned in the pool is smaller,"
            " and a load ahead of requests waits for none of them; try again later."
        )


class NotResident(AdapterError):
    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"Adapter {digest} is not in memory.")


class RequestError(ServingError):
    """The request itself cannot be run."""


class EmptyPrompt(RequestError):
    def __init__(self) -> None:
        super().__init__("The prompt has no tokens; give at least one.")


class TokenOutOfRange(RequestError):
    def __init__(self, field: str, token: int, vocabulary: int) -> None:
        self.field, self.token, self.vocabulary = field, token, vocabulary
        super().__init__(f"Token id {token} in {field} is outside the vocabulary of {vocabulary} tokens.")


class PromptTooLong(RequestError):
    def __init__(self, prompt_tokens: int, context_length: int, *, answered: bool = True) -> None:
        self.prompt_tokens, self.context_length = prompt_tokens, context_length
        most = f"at most {context_length - 1} leave room for an answer" if answered else "that is too long"
        super().__init__(f"The prompt has {prompt_tokens} tokens; with a context of {context_length} {most}.")


class InvalidSampling(RequestError):
    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field} is {value!r}; it must be {expected}.")


class EnsembleEmpty(RequestError):
    def __init__(self) -> None:
        super().__init__("An ensemble needs members; name at least one adapter.")


class EnsembleWeights(RequestError):
    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)
        shown = ", ".join(f"{weight:g}" for weight in weights)
        super().__init__(
            f"The weights of an ensemble are shares of its members' votes: finite, 0 or more, "
            f"and at least one above 0; found {shown}."
        )


class EnsembleTooLarge(RequestError):
    def __init__(self, members: int, max_rows: int) -> None:
        self.members, self.max_rows = members, max_rows
        super().__init__(
            f"The ensemble has {members} members, each of which takes a row of the batch; "
            f"this engine runs at most {max_rows} rows at once."
        )


class ConstraintUnsupported(RequestError):
    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        named = {"json_schema": "JSON schema", "regex": "regular expression"}.get(kind, kind)
        super().__init__(f"This {named} cannot be enforced: {reason}.")


class NotOnServers(RequestError):
    def __init__(self, field: str, value: object) -> None:
        self.field, self.value = field, value
        super().__init__(f"{field} {value!r} is not possible where vLLM servers generate; the embedded engine does it.")


class EngineError(ServingError):
    """The engine cannot take or finish the request."""


class QueueFull(EngineError):
    """`retry_after_s`: when those that wait will have begun, at the pace of late; whole seconds, at least one."""

    def __init__(self, waiting: int, limit: int, retry_after_s: int = 1) -> None:
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s
        super().__init__(f"{waiting} requests are waiting already, the limit is {limit}; try again later.")


class CallerQueueFull(EngineError):
    """`retry_after_s`: when the caller's own will have begun, at the pace of late; whole seconds, at least one."""

    def __init__(self, waiting: int, limit: int, retry_after_s: int = 1) -> None:
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s
        super().__init__(
            f"{waiting} requests of this caller are waiting already, the limit for one caller is {limit};"
            " try again later."
        )


class DeadlineExceeded(EngineError):
    def __init__(self, timeout_s: float, completion_tokens: int) -> None:
        self.timeout_s, self.completion_tokens = timeout_s, completion_tokens
        got = f"after {completion_tokens} tokens" if completion_tokens else "before its first token"
        super().__init__(f"The request was given {timeout_s:g} s and had not ended by then; it was stopped {got}.")


class EngineClosed(EngineError):
    def __init__(self) -> None:
        super().__init__("The engine is closed and takes no requests.")


class NoServer(EngineError):
    def __init__(self, servers: int) -> None:
        self.servers = servers
        super().__init__(
            f"None of the {servers} vLLM servers can be used now; the service's log says why. Try again later."
        )


class ServerLost(EngineError):
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        super().__init__(f"The vLLM server of this request went away after {tokens} tokens; ask again.")


class ServerRefused(EngineError):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The vLLM server refused the request: {reason}")


class StepFailed(EngineError):
    def __init__(self, step: str, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"The {step} step of the engine failed: {reason}")


class NonFiniteLogits(EngineError):
    def __init__(self, adapters: Sequence[tuple[str, float]]) -> None:
        self.adapters = tuple(adapters)
        named = ", ".join(f"{digest} at {weight:g}" for digest, weight in adapters) or "no adapters"
        super().__init__(f"The model's output is NaN or infinite with {named}; smaller weights may help.")


class ConstraintBroken(EngineError):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The answer could not be kept to its form any further: {reason}.")
