"""`recgpt train all`: every step from the data set to the agents' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recgpt.console import say
from recgpt.judge import TEXTS
from recgpt.steps import steps_in
from tools.dataset import open_dataset
from tools.errors import SettingError
from training.grpo_recipe import RECIPES
from training.runs import claim

EXPERTS = 1000
"""Experts' examples that the shipped weights were tuned on."""


def train_all(
    out: Annotated[Path, typer.Option(help="a directory a step; goes on with what is there")] = Path("runs/train/all"),
    recipe: Annotated[str, typer.Option(help=f"of tuning and GRPO: one of {', '.join(RECIPES)}")] = "cpu",
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
) -> None:
    """Make the agents' weights: training data, SFT, judged texts, reward model, GRPO of explainers, then of experts."""
    if recipe not in RECIPES:
        raise SettingError(f"there is no recipe {recipe!r}; take one of {', '.join(RECIPES)}")
    claim(out, {"dataset": open_dataset(dataset).info.name, "recipe": recipe})
    data, sft, judged, reward = (out / name for name in ("data", "sft", "judge", "reward"))
    experts, explainers = out / "grpo-expert", out / "grpo-explainer"
    policy = ["train", "grpo", "--data", data, "--dataset", dataset, "--reward", reward / "adapter", "--recipe", recipe]
    steps: list[tuple[str, Path, list[object]]] = [
        ("training data", data, ["train", "data", "--dataset", dataset, "--experts", EXPERTS]),
        ("all agents", sft, ["train", "sft", "all", "--data", data, "--recipe", recipe]),
        ("judged texts", judged, ["judge", "data", "--dataset", dataset]),
        ("reward model", reward, ["train", "reward", "--texts", judged / TEXTS.name, "--loss", "listwise"]),
        ("explainers", explainers, [*policy, "--adapter", sft / "adapter", "--agent", "explainer"]),
        ("experts", experts, [*policy, "--adapter", explainers / "adapter", "--agent", "expert", "--shaping", "crs"]),
    ]
    with steps_in(out) as run_step:
        for number, (name, own, arguments) in enumerate(steps, 1):
            # Either card is written last: that of data beside it, that of weights beside the adapter.
            done = any((own / card).is_file() for card in ("card.json", "adapter/card.json"))
            run_step(f"step {number} of {len(steps)}, {name}", [*map(str, arguments), "--out", str(own)], done)
    say(f"the agents' weights: {experts / 'adapter'}")
    say(f"`recgpt serve --model {experts / 'adapter'}` serves them; card.json beside them says how they were made")
