"""When a request came, when its turn came, when it first spoke: what becomes the timings of its last event."""

import time

from serving.generation import Timings


class Clock:
    """The moments of one request, which starts to wait now. One thread sets them."""

    def __init__(self) -> None:
        self._came = time.monotonic()
        self._begun: float | None = None
        self._answered: float | None = None

    def begin(self) -> None:
        """Its turn has come; a request that begins again (elsewhere, say) keeps its first turn."""
        if self._begun is None:
            self._begun = time.monotonic()

    def answer(self) -> None:
        """Its first token is there."""
        if self._answered is None:
            self._answered = time.monotonic()

    def timings(self, loading_s: float) -> Timings | None:
        """The stages up to now, `loading_s` of the waiting spent on adapters; None if its turn never came."""
        if self._begun is None:
            return None
        now = time.monotonic()
        answered = now if self._answered is None else self._answered
        waited_s = self._begun - self._came
        return Timings(waited_s, min(loading_s, waited_s), answered - self._begun, now - answered)
