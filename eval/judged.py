"""Texts whose labels are known: built from real purchases (`training/judged.py`), or given by people."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agents.schemas import Grade, JudgeTask
from eval.lines import read_json_lines
from prompts.rubric import Label
from tools.errors import DatasetError

Split = Literal["train", "validation", "test"]


class JudgedText(BaseModel):
    """A text to judge, and what is known of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    split: Split
    source: str
    """How it was made: `bought_next`, `swapped`, `contradicted` ..."""
    context: str
    """Household and moment; texts of one context are its candidates."""
    task: JudgeTask
    labels: dict[str, Label]
    """By dimension, as far as they are known."""
    evidence: dict[str, str]
    """Of each label the line of facts or text that decides."""
    grade: Grade | None
    """By the rule of section 7; None where too few labels are known."""


def split_of(user_id: str) -> Split:
    """Seven tenths of the households train, one validates, two test."""
    share = zlib.crc32(f"judged/{user_id}".encode()) % 10
    return "train" if share < 7 else "validation" if share < 8 else "test"


def read_judged(path: Path, split: Split | None = None) -> list[JudgedText]:
    """Read a file of judged texts, JSON lines.

    Raises:
        DatasetError: there is no such file.
        OutputError: a line of it is no judged text.
    """
    if not path.is_file():
        raise DatasetError(f"there is no file {path}; make it with `recgpt judge data`")
    return [text for text in read_json_lines(path, JudgedText) if split in (None, text.split)]
