"""`recgpt train`: make training data, and tune the agents on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recgpt.console import say
from tools.errors import SettingError
from tools.models import BASE_MODEL
from training.data import Settings, write_training_data
from training.mixture import MIXTURE_FILE, load_mixture
from training.sft import RECIPES, TUNED_AGENTS, train


def data(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    out: Annotated[Path, typer.Option(help="directory to write")] = Path("runs/train/data"),
    seed: Annotated[int, typer.Option(help="of cut points, wordings and fillers")] = 7,
    users: Annotated[int | None, typer.Option(min=1, help="so many households [default: all]")] = None,
    cuts: Annotated[int, typer.Option(min=1, help="cut points a household, at most")] = 4,
    experts: Annotated[int, typer.Option(min=1, help="experts' examples; the mixture gives the others")] = 500,
    mixture: Annotated[Path, typer.Option(help="YAML with the shares of what the examples teach")] = MIXTURE_FILE,
) -> None:
    """Build prompts and answers for the agents from what households really bought next."""
    settings = Settings(seed=seed, cuts_per_user=cuts, experts=experts)
    card = write_training_data(dataset, out, settings, load_mixture(mixture), users, say)
    say(f"{out}/examples.parquet: {card['households']} households, {card['examples']}")


def sft(
    agent: Annotated[str, typer.Argument(help=f"one of {', '.join(TUNED_AGENTS)}, or all")] = "all",
    data: Annotated[Path, typer.Option(help="what `recgpt train data` wrote")] = Path("runs/train/data"),
    out: Annotated[Path, typer.Option(help="checkpoints, logs, adapter; goes on from a checkpoint there")] = Path(
        "runs/train/sft"
    ),
    model: Annotated[str, typer.Option(help="the base of the default model, a directory or a hub name")] = BASE_MODEL,
    examples: Annotated[int | None, typer.Option(min=1, help="so many training examples [default: all]")] = None,
    recipe: Annotated[str, typer.Option(help=f"one of {', '.join(RECIPES)}")] = "cpu",
) -> None:
    """Tune one adapter for the agents (TRL's SFTTrainer, LoRA)."""
    if recipe not in RECIPES:
        raise SettingError(f"there is no recipe {recipe!r}; take one of {', '.join(RECIPES)}")
    card = train(agent, data, out, RECIPES[recipe], examples, say, model)
    say(f"{out}/adapter: {card['steps']} steps, validation loss {card['validation_loss']}")
