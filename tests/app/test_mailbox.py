"""A loop's mailbox: every letter once, in order, with one wake-up for all that lie there; chunks as text."""

import asyncio
import json
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.mailbox import Mailbox
from app.openai_answers import Shape, sse


def test_letters_of_many_threads_all_come_each_threads_in_order() -> None:
    senders, letters = 4, 500

    async def collected() -> list[tuple[int, int]]:
        box, got, over = Mailbox(asyncio.get_running_loop()), list[tuple[int, int]](), asyncio.Event()

        def receive(letter: tuple[int, int]) -> None:
            got.append(letter)
            if len(got) == senders * letters:
                over.set()

        def send(sender: int) -> None:
            for number in range(letters):
                box.post(receive, (sender, number))

        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(over.wait(), 30)
        for thread in threads:
            thread.join()
        return got

    got = asyncio.run(collected())
    for sender in range(senders):
        assert [number for one, number in got if one == sender] == list(range(letters))


def test_what_comes_before_the_loop_looks_needs_one_wake_up() -> None:
    """The letters that follow a foreign call in time still arrive before it: they went with the first wake-up."""

    async def order() -> list[str]:
        loop, seen = asyncio.get_running_loop(), list[str]()
        box = Mailbox(loop)
        box.post(seen.append, "first")
        loop.call_soon_threadsafe(seen.append, "call")
        for _ in range(3):
            box.post(seen.append, "letter")
        await asyncio.sleep(0)
        box.post(seen.append, "later")
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(order()) == ["first", "letter", "letter", "letter", "call", "later"]


def test_a_receiver_that_fails_holds_up_nobody() -> None:
    """The loop's handler hears of each failure, and the letters after it arrive without another post."""

    async def delivered() -> tuple[list[str], list[BaseException]]:
        loop, seen, failures = asyncio.get_running_loop(), list[str](), list[BaseException]()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        box = Mailbox(loop)
        for letter in ("first", "", "second", "", "third"):
            box.post(seen.append if letter else "".index, letter or "nowhere")
        async with asyncio.timeout(10):
            while len(seen) < 3:
                await asyncio.sleep(0)
        return seen, failures

    seen, failures = asyncio.run(delivered())
    assert seen == ["first", "second", "third"]
    assert [type(failure) for failure in failures] == [ValueError, ValueError]


def test_a_loop_that_has_closed_gets_nothing() -> None:
    loop, seen = asyncio.new_event_loop(), list[str]()
    box = Mailbox(loop)
    loop.close()
    box.post(seen.append, "late")
    assert seen == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=6
)


@given(model=st.text(), made_with=st.dictionaries(st.just("adapters"), st.lists(json_values)), choice=json_values)
def test_a_framed_chunk_is_the_chunk(model: str, made_with: dict[str, Any], choice: Any) -> None:
    """What the frame makes of a choice is what encoding the whole document makes of it, whatever the names are."""
    shape = Shape("chat.completion", model, made_with, 1, "chatcmpl")
    for usage in ({}, {"usage": None}):
        document = shape.envelope([choice], kind="chat.completion.chunk", **usage)
        chunk = shape.frame(kind="chat.completion.chunk", **usage).around(choice)
        assert chunk == sse(document) == f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
