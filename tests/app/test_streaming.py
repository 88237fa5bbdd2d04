"""Streamed answers and clients that go away at awkward moments."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from fastapi import Request

from app.api.streaming import answer_stream
from app.mailbox import Mailbox
from app.openai_answers import Shape
from serving.engine import Generation, Sampling
from tests.app.service import BASE, Service


def test_a_client_that_is_gone_before_the_first_chunk_ends_its_generation(service: Service) -> None:
    engine = service.house.engine

    async def nothing_more() -> Any:
        await asyncio.Event().wait()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    async def ask() -> None:
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        house = replace(service.house, mailbox=Mailbox(asyncio.get_running_loop()))
        response = await answer_stream(
            house,
            Request(scope, nothing_more),
            [Generation((1, 2, 3), (), Sampling(max_tokens=4000, ignore_eos=True))],
            Shape("text_completion", BASE, {}, 1, "cmpl"),
            opening=[],
            choice_of=lambda answer: {"text": answer.text},
            chunk_kind="text_completion",
            include_usage=False,
        )
        while engine.state().running == 0:
            await asyncio.sleep(0.02)
        await response(scope, gone, send)

    asyncio.run(ask())
    deadline = time.monotonic() + 5
    while engine.state().running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.state().running == 0
