"""`recgpt train`: make training data, and tune the agents on it."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from eval.judged import read_judged
from eval.tags import read_runs
from recgpt.console import progress_bar, reporting, say
from recgpt.output import cut_to_whole_lines, open_output
from recgpt.recommend import PATIENT, resolve_context, serve_for
from tools.dataset import open_dataset
from tools.embedding import PACKAGED_MODEL
from tools.errors import SettingError
from tools.logs import logging_to
from tools.models import BASE_MODEL, DEFAULT_MODEL, JUDGE_MODEL, REWARD_MODEL, sha256, weights_name
from tools.towers import TOWERS
from training.adaptor import AdaptorRecipe, train_adaptor
from training.alignment import Alignment, align, alignment_cases, read_alignments
from training.curves import draw_curves
from training.data import write_training_data
from training.examples import Settings
from training.grpo import train_policy
from training.grpo_recipe import RECIPES as GRPO_RECIPES
from training.grpo_recipe import Agent, GrpoRecipe, Shaping
from training.mixture import MIXTURE_FILE, load_mixture
from training.perception import PERCEPTION_FILE
from training.ranker import RankerRecipe, train_ranker
from training.reward_model import Loss, RewardRecipe, train_reward
from training.sft import RECIPES, TUNED_AGENTS, train
from training.towers import TowerRecipe, train_towers

LOG = Path("runs/train.log.jsonl")


def data(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    out: Annotated[Path, typer.Option(help="directory to write")] = Path("runs/train/data"),
    seed: Annotated[int, typer.Option(help="of cut points, wordings and fillers")] = 7,
    users: Annotated[int | None, typer.Option(min=1, help="so many households", show_default="all")] = None,
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
    card = train_towers(dataset, embedding_model, out, TowerRecipe(), say, shlex.join(["recgpt", *sys.argv[1:]]))
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
    command = shlex.join(["recgpt", *sys.argv[1:]])
    with reporting("training the ranker") as step:
        card = train_ranker(dataset, embedding_model, towers, out, RankerRecipe(), runs, step, command)
    say(f"{out}: {card['examples']:,} examples, tags {card['tag_bonus_on_validation']}")


def alignment(
    out: Annotated[Path, typer.Option(help="JSON lines; goes on with a file that is there")] = Path(
        "runs/train/alignment.jsonl"
    ),
    users: Annotated[int, typer.Option(min=1, help="households")] = 200,
    model: Annotated[str | None, typer.Option(help="model name at the server")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="model server", show_default="one is started if none runs")
    ] = None,
    profile: Annotated[str, typer.Option(help="how to start a server: cpu, cpu-compiled or fp8")] = "cpu-compiled",
    concurrency: Annotated[int, typer.Option(min=1, help="households at a time")] = 8,
    setting: Annotated[list[str] | None, typer.Option("--set", help="any other setting")] = None,
) -> None:
    """Ask planner and arbiter full-text prompts of training households: what `adaptor` learns to answer alike."""
    if out.suffix == ".xz":
        raise SettingError(f"{out} can't be gone on with: write JSON lines, and compress them when they are complete")
    settings = [PATIENT, "representation=text", "planner_tokens=3000", *(setting or [])]
    # Answers that were kept run no model, and it is the model's own words that are wanted.
    context = resolve_context(settings, base_url=base_url, model=model).model_copy(update={"answers": None})
    cut_to_whole_lines(out)
    answering = weights_name(context.model)
    done = {line.user_id for line in read_alignments(out, answering)} if out.exists() else set()
    todo = [case for case in alignment_cases(open_dataset(context.dataset), users) if case.user_id not in done]
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        if todo:
            serve_for(stack, context, profile)
        write_line = stack.enter_context(open_output(out))
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("households", total=users, completed=users - len(todo))

        def write(lines: Sequence[Alignment]) -> None:
            for line in lines:
                write_line(line)
            progress.advance(task)

        asyncio.run(align(context, todo, concurrency, write))
    say(f"{out}: prompts and answers of {users} households")


def adaptor(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    embedding_model: Annotated[str, typer.Option(help="of titles and queries")] = PACKAGED_MODEL,
    model: Annotated[str, typer.Option(help="the LLM: the default model, a directory or a hub name")] = DEFAULT_MODEL,
    alignment: Annotated[
        Path | None, typer.Option(help="what `recgpt train alignment` wrote", show_default="self-perception alone")
    ] = None,
    titles: Annotated[
        Path | None, typer.Option(help='corpus of titles, JSON lines {"zh": ..., "en": ...}: one more task')
    ] = None,
    mixture: Annotated[Path, typer.Option(help="YAML with the tasks of self-perception and their shares")] = (
        PERCEPTION_FILE
    ),
    tokens: Annotated[int, typer.Option(min=1, max=16, help="input embeddings an entity")] = AdaptorRecipe.tokens,
    pairs: Annotated[int, typer.Option(min=1, help="self-perception pairs")] = AdaptorRecipe.pairs,
    seed: Annotated[int, typer.Option(help="of weights, pairs and order")] = AdaptorRecipe.seed,
    out: Annotated[Path, typer.Option(help="checkpoints, logs, weights; goes on from a checkpoint there")] = Path(
        "runs/train/adaptor"
    ),
) -> None:
    """Train the adaptor of hybrid prompts: one input embedding an item or query."""
    recipe = AdaptorRecipe(seed=seed, tokens=tokens, pairs=pairs)
    command = shlex.join(["recgpt", *sys.argv[1:]])
    card = train_adaptor(dataset, embedding_model, model, alignment, titles, mixture, out, recipe, say, command)
    say(f"{out}/adaptor: {card['steps']} steps, validation loss {card['validation_loss']}")


def sft(
    agent: Annotated[str, typer.Argument(help=f"one of {', '.join(TUNED_AGENTS)}, or all")] = "all",
    data: Annotated[Path, typer.Option(help="what `recgpt train data` wrote")] = Path("runs/train/data"),
    out: Annotated[Path, typer.Option(help="checkpoints, logs, adapter; goes on from a checkpoint there")] = Path(
        "runs/train/sft"
    ),
    model: Annotated[str, typer.Option(help="the base of the default model, a directory or a hub name")] = BASE_MODEL,
    examples: Annotated[int | None, typer.Option(min=1, help="so many training examples", show_default="all")] = None,
    recipe: Annotated[str, typer.Option(help=f"one of {', '.join(RECIPES)}")] = "cpu",
) -> None:
    """Tune one adapter for the agents (TRL's SFTTrainer, LoRA)."""
    if recipe not in RECIPES:
        raise SettingError(f"there is no recipe {recipe!r}; take one of {', '.join(RECIPES)}")
    command = shlex.join(["recgpt", *sys.argv[1:]])
    card = train(agent, data, out, RECIPES[recipe], examples, say, model, command)
    say(f"{out}/adapter: {card['steps']} steps, validation loss {card['validation_loss']}")


def reward(
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="judged texts; several files are one", show_default="runs/judge/texts.jsonl"),
    ] = None,
    model: Annotated[str, typer.Option(help="the judge: a model made here, a directory or a hub name")] = JUDGE_MODEL,
    loss: Annotated[str, typer.Option(help=f"one of {', '.join(get_args(Loss))}")] = RewardRecipe.loss,
    epochs: Annotated[float, typer.Option(help="passes over the contexts")] = RewardRecipe.epochs,
    seed: Annotated[int, typer.Option(help="of weights and order")] = RewardRecipe.seed,
    out: Annotated[Path, typer.Option(help="checkpoints, logs, adapter; goes on from a checkpoint there")] = Path(
        "runs/train/reward"
    ),
) -> None:
    """Distil the judge into a reward model: a scalar head on the judge's weights (section 7)."""
    if loss not in get_args(Loss):
        raise SettingError(f"there is no loss {loss!r}; take one of {', '.join(get_args(Loss))}")
    paths = texts or [Path("runs/judge/texts.jsonl")]
    found = [text for path in paths for text in read_judged(path)]
    recipe = RewardRecipe(loss=cast(Loss, loss), epochs=epochs, seed=seed)
    command = shlex.join(["recgpt", *sys.argv[1:]])
    digests = [sha256(path) for path in paths]
    card = train_reward(found, digests, model, out, recipe, say, command)
    say(f"{out}/adapter: {card['steps']} steps, validation loss {card['validation_loss']}")


def grpo(
    agent: Annotated[str, typer.Option(help=f"one of {', '.join(get_args(Agent))}")] = "expert",
    data: Annotated[Path, typer.Option(help="what `recgpt train data` wrote")] = Path("runs/train/data"),
    dataset: Annotated[Path, typer.Option(help="data set directory, what the data was made from")] = Path(
        "data/completejourney"
    ),
    adapter: Annotated[
        str, typer.Option(help="what it starts from: the default model, or an adapter's directory")
    ] = DEFAULT_MODEL,
    reward: Annotated[
        str, typer.Option(help="reward model: the shipped one, or an adapter's directory")
    ] = REWARD_MODEL,
    shaping: Annotated[
        str, typer.Option(help="of an expert's rewards: crs (gates) or sum; see section 5 of the report")
    ] = "crs",
    recipe: Annotated[str, typer.Option(help=f"one of {', '.join(GRPO_RECIPES)}")] = "cpu",
    seed: Annotated[
        int, typer.Option(help="of the draw of prompts, and of answers unless a --base-url gives them")
    ] = GrpoRecipe.seed,
    base_url: Annotated[
        str | None, typer.Option(help="vLLM server with adapters that answers", show_default="the trainer does")
    ] = None,
    out: Annotated[Path, typer.Option(help="checkpoints, logs, adapter; goes on from a checkpoint there")] = Path(
        "runs/train/grpo"
    ),
) -> None:
    """Reinforce experts or explainers with the judge's reward (TRL's GRPOTrainer, sections 5 and 6)."""
    for kind, name, known in (
        ("agent", agent, get_args(Agent)),
        ("shaping", shaping, get_args(Shaping)),
        ("recipe", recipe, tuple(GRPO_RECIPES)),
    ):
        if name not in known:
            raise SettingError(f"there is no {kind} {name!r} here; take one of {', '.join(known)}")
    api_key = resolve_context([], base_url=base_url).api_key.get_secret_value()
    card = train_policy(
        cast(Agent, agent),
        data,
        dataset,
        adapter,
        reward,
        cast(Shaping, shaping),
        out,
        replace(GRPO_RECIPES[recipe][cast(Agent, agent)], seed=seed),
        base_url,
        api_key,
        say,
        shlex.join(["recgpt", *sys.argv[1:]]),
    )
    say(f"{out}/adapter: {card['steps']} steps, validation reward {card['validation_reward']}")


def curves(
    runs: Annotated[list[Path], typer.Argument(help="directories that `recgpt train grpo` wrote")],
    out: Annotated[Path, typer.Option(help="image to write; its ending is the format")] = Path("runs/train/curves.png"),
) -> None:
    """Draw the learning curves of GRPO runs beside each other."""
    draw_curves(runs, out)
    say(f"{out}: {len(runs)} runs")
