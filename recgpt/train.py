"""`recgpt train`: make training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recgpt.console import say
from training.data import Settings, write_training_data


def data(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    out: Annotated[Path, typer.Option(help="directory to write")] = Path("runs/train/data"),
    seed: Annotated[int, typer.Option(help="of cut points, wordings and fillers")] = 7,
    users: Annotated[int | None, typer.Option(min=1, help="so many households [default: all]")] = None,
    cuts: Annotated[int, typer.Option(min=1, help="cut points a household, at most")] = 4,
) -> None:
    """Build prompts and answers for the agents from what households really bought next."""
    card = write_training_data(dataset, out, Settings(seed=seed, cuts_per_user=cuts), users, say)
    say(f"{out}/examples.parquet: {card['households']} households, {card['examples']}")
