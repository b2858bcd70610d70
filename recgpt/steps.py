"""Commands of `recgpt` that follow each other: each a process of its own, so that its memory is free after it.

What a step makes is the same as by hand, its card's command included.
"""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from recgpt.console import say
from tools.errors import TrainingError

RECGPT = (sys.executable, "-m", "recgpt")
LOCK = "lock"
POLL = 0.2
"""Seconds between two looks at a step."""


class RunStep(Protocol):
    """Runs a step."""

    def __call__(self, what: str, arguments: Sequence[str], done: bool) -> None:
        """Say what comes and run it, unless it is done.

        Args:
            what: for a person.
            arguments: of `recgpt`.
            done: whether its result is there already.

        Raises:
            TrainingError: it failed; it has said why.
        """


@contextmanager
def steps_in(out: Path) -> Iterator[RunStep]:
    """A function that runs steps which write to `out`: one at a time, also where several runs have the same `out`.

    A step whose run was killed goes on by itself. It holds the lock that it got from there, and the run that is to go
    on waits for it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run, or a step that outlived its run, is at work in {out}: waiting until it ends")
            fcntl.flock(lock, fcntl.LOCK_EX)

        def run_step(what: str, arguments: Sequence[str], done: bool) -> None:
            command = shlex.join(["recgpt", *arguments])
            if done:
                say(f"{what}: there already")
                return
            say(f"{what}: {command}")
            if code := run_command(arguments, lock.fileno()):
                raise TrainingError(
                    f"{what}: `{command}` ended with code {code}, its reason stands above; what is finished is kept, "
                    "and the same run goes on from there"
                )

        yield run_step


def run_command(arguments: Sequence[str], lock: int) -> int:
    """Run a command of `recgpt` that holds a lock; its exit code. Whoever ends this process ends that one too."""
    process = subprocess.Popen([*RECGPT, *arguments], pass_fds=(lock,))
    try:
        # No wait(): polars lets system calls go on after a SIGINT, so that Ctrl-C would be heard of at the end alone.
        while (code := process.poll()) is None:
            time.sleep(POLL)
    except BaseException:
        # Not killed: a model server that it started must be stopped on the way out.
        process.terminate()
        process.wait()
        raise
    return code
