"""What `--help` shows of the commands."""

from collections.abc import Iterator
from typing import Any

import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from recgpt.cli import app


def commands(group: Any, *path: str) -> Iterator[tuple[list[str], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield [*path, name], command


def test_no_help_text_loses_a_word() -> None:
    for path, command in commands(get_command(app)):
        for one in command.params:
            told = getattr(one, "help", None) or ""
            assert Text.from_markup(told).plain == told, (path, one.name)  # brackets are markup


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("recommend", ["one is started if none runs", "after the last event", "standard output, or beside --report"]),
        ("eval arm", ["one is started if none runs"]),
        ("eval hybrid", ["all"]),
        ("train flywheel", ["runs/judge/texts.jsonl"]),
        ("train grpo", ["the trainer does"]),
    ],
)
def test_defaults_that_are_told_in_words_are_shown(command: str, defaults: list[str]) -> None:
    shown = (
        CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "250", "TERMINAL_WIDTH": "250"}).output
    )
    for default in defaults:
        assert f"[default: ({default})]" in shown
