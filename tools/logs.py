"""structlog as JSON lines, an event a line, with the run and user ids that the callers bind."""

from __future__ import annotations

from typing import TextIO

import structlog


def configure_logging(stream: TextIO) -> None:
    """Send all events of this process to `stream`; a service calls it once at its start with its own stream."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
