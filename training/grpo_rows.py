"""What GRPO's policies answer, and what their answers are rewarded by: from the data of `recgpt train data`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

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
    user_id: str
    as_of: datetime
    prompt: list[dict[str, str]]
    answer: str
    """Of the training data."""
    bought: list[str]
    new: list[str]
    judged: JudgeTask | None
    """What an explainer's text is judged by, without the text."""

    @property
    def tags(self) -> int:
        """How many tags the prompt asks for."""
        return len(json.loads(self.answer)["tags"])


def read_rows(data: Path, agent: Agent) -> tuple[dict[str, list[Row]], str]:
    """Rows of an agent by split (`train`, `validation`) that an answer can be rewarded for, and the data's hash.

    An expert's are those without a shelf. A shelf is in the order of the ranker, which knows more of the household than
    the prompt tells: there is nothing to choose better, and a tuned expert keeps to it.

    Raises:
        DatasetError: there are none, or the file is not the one of its card.
    """
    table, digest = read_examples(data, agent)
    if missing := {"hybrid", "bought", "new", "shelf", "judged"} - set(table.columns):
        raise DatasetError(
            f"{data}/examples.parquet lacks {', '.join(sorted(missing))}: it tells nothing that answers could be "
            "rewarded by; make it again with `recgpt train data`"
        )
    rewarded = pl.col("shelf") == 0 if agent == "expert" else pl.col("judged") != ""
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in table.filter(~pl.col("hybrid"), rewarded).iter_rows(named=True):
        rows[row["split"]].append(_row(row))
    if empty := [split for split, own in rows.items() if not own]:
        raise DatasetError(
            f"{data} has no {' and no '.join(empty)} example of the agent {agent} that an answer can be rewarded "
            "for; make more with `recgpt train data`"
        )
    return rows, digest


def _row(row: Mapping[str, Any]) -> Row:
    name = f"{row['agent']} of household {row['user_id']} at {row['as_of']:%Y-%m-%d %H:%M}"
    try:
        judged = JudgeTask.model_validate_json(row["judged"]) if row["judged"] else None
    except ValidationError as error:
        raise DatasetError(f"the row {name} has no valid task of the judge: {error}") from error
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = [*system, {"role": "user", "content": row["user"]}]
    bought, new = (list(row[key] or ()) for key in ("bought", "new"))
    return Row(name, row["user_id"], row["as_of"], prompt, row["answer"], bought, new, judged)


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
