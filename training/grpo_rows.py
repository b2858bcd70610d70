"""What GRPO's policies answer, and what their answers are rewarded by: from the data of `recgpt train data`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agents.schemas import JudgeTask
from tools.errors import DatasetError
from training.grpo_recipe import Agent
from training.hybrid import TAGS
from training.sft import read_examples


@dataclass(frozen=True)
class Row:
    """A prompt and what its answers are rewarded by."""

    name: str
    """Agent, household and moment, for a person to find it by."""
    prompt: list[dict[str, str]]
    answer: str
    """Of the training data."""
    tasks: list[JudgeTask]
    """Of an expert one a tag of its shelf; of an explainer one, without its text."""
    bought: list[str]
    new: list[str]

    @property
    def tags(self) -> int:
        """How many tags the prompt asks for."""
        return len(json.loads(self.answer)["tags"])


def read_rows(data: Path, agent: Agent) -> tuple[dict[str, list[Row]], str]:
    """Rows of an agent by split (`train`, `validation`) that an answer can be rewarded for, and the data's hash.

    Raises:
        DatasetError: there are none, or the file is not the one of its card.
    """
    table, digest = read_examples(data, agent)
    if missing := {"hybrid", "bought", "new", "judged"} - set(table.columns):
        raise DatasetError(
            f"{data}/examples.parquet lacks {', '.join(sorted(missing))}: it tells nothing that answers could be "
            "rewarded by; make it again with `recgpt train data`"
        )
    table = table.filter(~pl.col("hybrid"), pl.col("judged") != "")
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in table.iter_rows(named=True):
        read = _row(row)
        # An expert's tags are of its shelf: where nothing of that was bought next, all answers earn the same.
        if agent != "expert" or any(task.subject in read.bought for task in read.tasks):
            rows[row["split"]].append(read)
    if empty := [split for split, own in rows.items() if not own]:
        raise DatasetError(
            f"{data} has no {' and no '.join(empty)} example of the agent {agent} that an answer can be rewarded "
            "for; make more with `recgpt train data`"
        )
    return rows, digest


def _row(row: Mapping[str, Any]) -> Row:
    name = f"{row['agent']} of household {row['user_id']} at {row['as_of']:%Y-%m-%d %H:%M}"
    try:
        tasks = TypeAdapter(list[JudgeTask]).validate_json(row["judged"])
    except ValidationError as error:
        raise DatasetError(f"the row {name} has no valid tasks of the judge: {error}") from error
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = [*system, {"role": "user", "content": row["user"]}]
    return Row(name, prompt, row["answer"], tasks, list(row["bought"] or ()), list(row["new"] or ()))


def read_vectors(data: Path) -> dict[str, NDArray[np.float32]]:
    """Embeddings of the catalogue's leaves as tags (d,), unit vectors.

    Raises:
        DatasetError: there are none.
    """
    try:
        table = pl.read_parquet(data / TAGS)
        return {text: np.asarray(vector, dtype=np.float32) for text, vector in table.select("text", "vector").rows()}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(
            f"{data / TAGS} holds no vectors of tags ({error}); make them with `recgpt train data`"
        ) from error
