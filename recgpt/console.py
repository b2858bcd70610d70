"""What a person reads while a command runs: on a terminal one moving line, in a log a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY = 10.0
"""Seconds between two lines of the same step where no terminal shows a moving one."""

console = Console(stderr=True)


def say(message: str) -> None:
    """Print a line as it is: brackets of a log or a title are no markup."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def complain(kind: str, message: str) -> None:
    """Print what went wrong."""
    console.print(f"[bold red]{kind}:[/] {escape(message)}", highlight=False, soft_wrap=True)


def progress_bar() -> Progress:
    """How many households are done, and how long the rest will take."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def reporting(step: str) -> Iterator[Callable[[str], None]]:
    """A function that shows how a long step gets on."""
    if console.is_terminal:
        with console.status(step) as status:
            yield lambda message: status.update(escape(message))
        return
    said = -LOG_EVERY

    def say_now_and_then(message: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LOG_EVERY:
            said = time.monotonic()
            say(f"  {message}")

    yield say_now_and_then
