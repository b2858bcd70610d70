"""`recgpt train`: make training data, and tune the agents on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eval.tags import read_runs
from recgpt.console import reporting, say
from tools.embedding import PACKAGED_MODEL
from tools.errors import SettingError
from tools.models import BASE_MODEL
from tools.towers import TOWERS
from training.data import Settings, write_training_data
from training.mixture import MIXTURE_FILE, load_mixture
from training.ranker import RankerRecipe, train_ranker
from training.sft import RECIPES, TUNED_AGENTS, train
from training.towers import TowerRecipe, train_towers


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


def towers(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    embedding_model: Annotated[str, typer.Option(help="of titles and tags")] = PACKAGED_MODEL,
    out: Annotated[Path, typer.Option(help="weights and card")] = Path("runs/train/towers"),
) -> None:
    """Train user, item and tag towers on what households bought next."""
    card = train_towers(dataset, embedding_model, out, TowerRecipe(), say)
    say(f"{out}: epoch {card['epoch']}, validation {card['validation']}")


def ranker(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    embedding_model: Annotated[str, typer.Option(help="that of the towers")] = PACKAGED_MODEL,
    towers: Annotated[Path, typer.Option(help="trained towers")] = TOWERS,
    tags: Annotated[Path | None, typer.Option(help="output of `recgpt eval arm`: what a tag is worth")] = None,
    out: Annotated[Path, typer.Option(help="weights and card")] = Path("runs/train/ranker"),
) -> None:
    """Train the ranker of both channels on what households bought next."""
    runs = read_runs(tags) if tags else []
    with reporting("training the ranker") as step:
        card = train_ranker(dataset, embedding_model, towers, out, RankerRecipe(), runs, step)
    say(f"{out}: {card['examples']:,} examples, tags {card['tag_bonus_on_validation']}")


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
