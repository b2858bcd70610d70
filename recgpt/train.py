"""`recgpt train`: make training data, and tune the agents on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recgpt.console import say
from tools.models import DEFAULT_MODEL
from training.data import Settings, write_training_data
from training.sft import AGENTS, CPU_RECIPE, train


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


def sft(
    agent: Annotated[str, typer.Argument(help=f"one of {', '.join(AGENTS)}, or all")] = "all",
    data: Annotated[Path, typer.Option(help="what `recgpt train data` wrote")] = Path("runs/train/data"),
    out: Annotated[Path, typer.Option(help="checkpoints, logs, adapter; goes on from a checkpoint there")] = Path(
        "runs/train/sft"
    ),
    model: Annotated[str, typer.Option(help="the default model, a directory or a hub name")] = DEFAULT_MODEL,
    examples: Annotated[int | None, typer.Option(min=1, help="so many training examples [default: all]")] = None,
) -> None:
    """Tune one adapter for the agents (TRL's SFTTrainer, LoRA)."""
    card = train(agent, data, out, CPU_RECIPE, examples, say, model)
    say(f"{out}/adapter: {card['steps']} steps, validation loss {card['validation_loss']}")
