"""Output lines: written one by one so that a crash or a full disk keeps the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from agents.schemas import Recommendation
from recgpt.console import progress_bar
from tools.errors import OutputError


class Line(Protocol):
    """What is written as one line, such as a household's result."""

    def model_dump_json(self) -> str:
        """The line."""


Write = Callable[[Line], None]


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """A function that writes a line to `path`, or to standard output.

    Raises:
        OutputError: a line could not be written; the file ends with the last whole line.
    """
    if path is None:
        yield lambda result: print(result.model_dump_json(), flush=True)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error}") from error
    written = 0

    def write(result: Line) -> None:
        nonlocal written
        end = file.seek(0, 2)
        rest = memoryview(result.model_dump_json().encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(end)
            raise OutputError(
                f"{path}: {error.strerror}; the {written} lines written before are kept. Make room and run the same "
                "command again, to go on with them"
            ) from error
        written += 1

    with file:
        yield write


@contextmanager
def counted_output(path: Path, what: str, total: int, done: int) -> Iterator[Write]:
    """A function that writes a line to `path` and moves a bar: `done` of `total` are there."""
    with open_output(path) as write_line, progress_bar() as progress:
        task = progress.add_task(what, total=total, completed=done)

        def write(line: Line) -> None:
            write_line(line)
            progress.advance(task)

        yield write


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a file that is there, or takes the place of one, only when it is whole.

    Raises:
        OutputError: it could not be written; what was there before is kept.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error}); what was there before is kept. Make room, or give another --out"
        ) from error


def read_lines(path: Path) -> Iterator[Recommendation]:
    """The lines of an output file.

    Raises:
        OutputError: the file is missing, or a line is no recommendation (file and line are named).
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Recommendation.model_validate_json(line)
                except ValidationError as error:
                    raise OutputError(f"{path} line {number} is no recommendation of this version: {error}") from error
    except OSError as error:
        raise OutputError(f"{path} could not be read: {error}") from error


def cut_to_whole_lines(path: Path) -> None:
    """Take off a last line that a crash cut in two."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def finished_users(path: Path | None, resume: bool, moment: datetime, settings: Mapping[str, object]) -> set[str]:
    """Users that an output file has already; a last line that a crash cut in two is taken off.

    Raises:
        OutputError: the file is there and was not to be continued, or is of another moment or of other settings
            (`Context.overrides`).
    """
    if path is None or not path.exists():
        return set()
    if not resume:
        raise OutputError(f"{path} is there already; give --resume to go on with it, or another name")
    cut_to_whole_lines(path)
    users = set()
    for line in read_lines(path):
        if line.as_of != moment:
            raise OutputError(
                f"{path} has household {line.user_id} as of {line.as_of}, this run is as of {moment}; "
                "give the same --as-of, or another name"
            )
        if line.settings != settings:
            found, wanted = (
                _differing(one, other) for one, other in ((line.settings, settings), (settings, line.settings))
            )
            raise OutputError(
                f"{path} has household {line.user_id} with {found}, this run has {wanted}; "
                "give the same settings, or another name"
            )
        users.add(line.user_id)
    return users


def _differing(settings: Mapping[str, object], other: Mapping[str, object]) -> str:
    """What differs from other settings, in words; what is not in `settings` has its default."""
    names = sorted(name for name in {*settings, *other} if settings.get(name) != other.get(name))
    return ", ".join(f"{name}={settings.get(name, 'default')}" for name in names)
