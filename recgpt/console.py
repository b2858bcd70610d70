"""What a person reads while a command runs: on a terminal one moving line, in a log a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LOG_EVERY = 10.0
"""Seconds between two lines of the same step where no terminal shows a moving one."""

console = Console(stderr=True)


@contextmanager
def reporting(step: str) -> Iterator[Callable[[str], None]]:
    """A function that shows how a long step gets on."""
    if console.is_terminal:
        with console.status(step) as status:
            yield status.update
        return
    said = -LOG_EVERY

    def say(message: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LOG_EVERY:
            said = time.monotonic()
            console.print(f"  {message}", highlight=False, soft_wrap=True)

    yield say
