"""What other threads have for the tasks of an event loop: one wake-up for all that comes before the loop looks.

Waking a loop is a system call for the thread that wakes and a turn of the loop for the one that is woken, and both
hold the interpreter while the engine's next step could begin. A step with many streams has something for each of them
at the same moment, so its letters go into one box.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

Letter = TypeVar("Letter")


class Mailbox:
    """The box of one loop; `post` may be called on any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[Callable[[], object]] = deque()
        self._woken = False

    def post(self, receive: Callable[[Letter], object], letter: Letter) -> None:
        """Have the loop call `receive(letter)` soon, in the order of posting. A loop that has closed calls nothing."""
        if self._loop.is_closed():
            return
        self._letters.append(lambda: receive(letter))
        if not self._woken:  # two threads may both find this; a wake-up too many does no harm
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is posted from now on wakes anew, so that no letter is left lying
        try:
            while self._letters:
                self._letters.popleft()()
        finally:
            if self._letters:  # a receiver failed, which the loop tells of; the letters after it are other people's
                self._loop.call_soon(self._deliver)
