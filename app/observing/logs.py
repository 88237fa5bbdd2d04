"""Logs: one line an event, as JSON for machines or as text for a terminal, whichever library it comes from.

Everything logs through the standard library; structlog only renders. What is bound to the context (request_id, job_id,
key_id) is in every line, and so are the ids of the trace where there is one. Never logged: bodies, headers, query
strings.
"""

import logging
import sys
from typing import Any, Literal, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor

from app.settings import Settings

FIELDS = ("method", "route", "path", "status", "duration_s", "key_id")


def configure_logs(settings: Settings) -> None:
    """Let all loggers of this process write to stderr, in the settings' format."""
    root = logging.getLogger()
    root.handlers[:] = [log_handler(settings.log_format, sys.stderr)]
    root.setLevel(settings.log_level.upper())
    for chatty in ("alembic", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_handler(log_format: Literal["json", "text"] | None, stream: TextIO) -> logging.Handler:
    """What writes to `stream`; without a format, text on a terminal and JSON elsewhere."""
    terminal = stream.isatty()
    kind = log_format or ("text" if terminal else "json")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(FIELDS),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _trace_ids,
    ]
    ending: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if kind == "json"
        else [structlog.dev.ConsoleRenderer(colors=terminal)]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    return handler


def _trace_ids(_: Any, __: str, event: EventDict) -> EventDict:
    found = trace.get_current_span().get_span_context()
    if found.is_valid:
        event["trace_id"] = format(found.trace_id, "032x")
        event["span_id"] = format(found.span_id, "016x")
    return event
