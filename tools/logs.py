"""structlog as JSON lines, an event a line, with the run and user ids that the callers bind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


class _LogFile(io.TextIOBase):
    """Appends whole lines at once. A log that can't be written, on a full disk, is no reason to lose a result."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        try:
            self._file.write(text.encode())
        except OSError:
            return 0
        return len(text)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append all events of this process to a file for a while."""
    with _LogFile(path) as file:
        configure_logging(file)  # type: ignore[arg-type]
        try:
            yield
        finally:
            structlog.reset_defaults()
