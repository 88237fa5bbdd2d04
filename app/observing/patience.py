"""Questions with a time limit, for probes: what hangs must not hang who asks, nor pile up threads.

A question runs on a thread of its own. Whoever asks the same again while it runs waits for that answer; so however
often a hanging database is asked for, one thread hangs.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """A question took longer than it may."""

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s:g} s")
        self.name = name


class Patience:
    """Asks named questions, each at most once at a time."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._asked: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()

    async def ask(self, name: str, question: Callable[[], Answer]) -> Answer:
        """The answer, or what the question raised. Raises NoAnswer."""
        future = self._begin(name, question)
        coming = asyncio.wrap_future(future)
        coming.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look
        try:
            async with asyncio.timeout(self.timeout_s):
                answer: Answer = await asyncio.shield(coming)
                return answer
        except TimeoutError:
            if future.done():
                raise  # its own
            raise NoAnswer(name, self.timeout_s) from None

    def _begin(self, name: str, question: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            running = self._asked.get(name)
            if running is not None and not running.done():
                return running
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            self._asked[name] = future
        threading.Thread(target=_answer, args=(future, question), name=f"probe-{name}", daemon=True).start()
        return future


def _answer(future: Future[Any], question: Callable[[], Any]) -> None:
    try:
        future.set_result(question())
    except BaseException as error:
        future.set_exception(error)
