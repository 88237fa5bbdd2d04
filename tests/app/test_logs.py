"""The forms of the log, and what is in every line whoever wrote it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.observing.logs import log_handler


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A library's logger, which knows nothing of ours."""
    found = logging.getLogger("a.library")
    found.propagate = False
    found.setLevel(logging.INFO)
    yield found
    found.handlers.clear()
    found.propagate = True


def written(logger: logging.Logger, stream: io.StringIO, log_format: Any) -> str:
    """What the logger's words become."""
    logger.addHandler(log_handler(log_format, stream))
    with structlog.contextvars.bound_contextvars(request_id="r1", key_id="k1"):
        logger.info("%d of %s", 3, "four", extra={"status": 200, "password": "hunter2"})
        try:
            raise ValueError("wrong\nin two lines")
        except ValueError:
            logger.exception("it broke")
    return stream.getvalue()


def test_json_is_one_line_an_event_with_the_ids_of_the_context(logger: logging.Logger) -> None:
    text = written(logger, io.StringIO(), None)
    first, second = (json.loads(line) for line in text.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "3 of four",
        "level": "info",
        "logger": "a.library",
        "request_id": "r1",
        "key_id": "k1",
        "status": 200,
    }
    assert second["level"] == "error"
    assert "ValueError: wrong\nin two lines" in second["exception"]
    assert "hunter2" not in text


def test_text_is_for_terminals_and_for_who_asks(logger: logging.Logger) -> None:
    assert "\x1b[" in written(logger, Terminal(), None)
    logger.handlers.clear()
    plain = written(logger, io.StringIO(), "text")
    assert "3 of four" in plain
    assert "request_id=r1" in plain
    assert "\x1b[" not in plain
    logger.handlers.clear()
    assert json.loads(written(logger, Terminal(), "json").splitlines()[0])["request_id"] == "r1"
