"""What the application asks of any engine, embedded or a fleet of servers.

Two engines keep it: `serving.engine.Engine` (this process) and `serving.vllm.engine.VllmEngine` (vLLM servers).
"""

from collections.abc import Callable
from typing import Protocol

from serving.generation import Event, Generation


class Ticket(Protocol):
    """The way back to a submitted request."""

    def cancel(self) -> None:
        """End the request soon; it gets a FinishEvent("cancelled") unless it has ended already."""


class Load(Protocol):
    """How busy an engine is, which adapters it holds (version or served name -> requests that use it), and whether it
    can generate at all. `turn_s`: how long it has been at its present step, 0 while idle."""

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def resident(self) -> dict[str, int]: ...
    @property
    def resident_bytes(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def turn_s(self) -> float: ...


class Engine(Protocol):
    """Generates for many requests at once."""

    def submit(self, generation: Generation, on_event: Callable[[Event], None]) -> Ticket:
        """Take a request. `on_event` is called on a thread of the engine and must be quick; the last event is a
        FinishEvent or a FailEvent.

        Raises: QueueFull, EngineClosed, and for the request itself EmptyPrompt, PromptTooLong, TokenOutOfRange.
        """

    def state(self) -> Load:
        """A look at the engine, at once."""

    def close(self) -> None:
        """Stop; whatever waits or runs gets a FailEvent(EngineClosed)."""
