"""Files of JSON lines, such as what a command wrote so far."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tools.errors import OutputError

M = TypeVar("M", bound=BaseModel)


def read_json_lines(path: Path, model: type[M]) -> list[M]:
    """The lines of a file; none if there is no such file.

    Raises:
        OutputError: the file can't be read, or a line is none of these (file and line are named).
    """
    try:
        # Only "\n" ends a line: `splitlines` cuts texts too, at characters such as U+2028 that JSON leaves as they are.
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error}); give a file of JSON lines that may be read") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                found.append(model.model_validate_json(line))
            except ValidationError as error:
                raise OutputError(
                    f"{path}, line {number}: expected a {model.__name__}, found {error}; remove the line, and the "
                    "command that wrote the file makes it again"
                ) from error
    return found
