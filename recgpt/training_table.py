"""`recgpt eval training`: the table of what training is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from agents.context import Context
from eval.metrics import Estimate
from eval.offline import read_metrics, write_metrics
from eval.splits import WEEKS, week_cases
from eval.systems import TAGGERS
from eval.tags import TagRun, read_runs
from eval.training import (
    ARMS,
    FIGURES,
    SPLITS,
    Key,
    explanation_figures,
    read_scores,
    score_runs,
    scores_key,
    shared_runs,
    split_cases,
    table_rows,
    training_figures,
    week_figures,
    write_training_page,
)
from recgpt.console import complain, console, reporting, say
from recgpt.evaluate import (
    EVALUATION,
    LOG,
    BaseUrl,
    Concurrency,
    DatasetOption,
    Out,
    Profile,
    Setting,
    Users,
    run_missing,
)
from recgpt.output import counted_output, cut_to_whole_lines
from recgpt.recommend import resolve_context
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import SettingError
from tools.llm import Endpoint
from tools.logs import logging_to
from tools.models import BASE_MODEL, DEFAULT_MODEL, REWARD_MODEL, weights_name
from tools.retrieval import open_index
from tools.serving import named_profile, running_server
from training.runs import claim

REWARD_BASE_URL = "http://127.0.0.1:8402/v1"
"""Where the reward model's server is started: it is never that of the agents, who ask for words."""
SCORE_TIMEOUT = 3600.0
"""Seconds: on a CPU the candidates of many households wait for each other."""


def training(
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help=f"NAME=MODEL, a model's name or an adapter's directory; NAME is one of {', '.join(ARMS)}; v1 is "
            f"always there, by itself with {DEFAULT_MODEL}, and base with {BASE_MODEL}"
        ),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            help="arm that is compared with V1 and asked about the weeks, by itself the last --arm; one that has no "
            "--arm is the default model"
        ),
    ] = None,
    users: Users = 500,
    split: Annotated[str, typer.Option(help="test, or validation for choices")] = "test",
    out: Out = Path("runs/eval/training"),
    align_users: Annotated[int, typer.Option(min=0, help="households whose tags the reward model scores")] = 100,
    week_users: Annotated[int, typer.Option(min=0, help="households that the best arm is asked about a week")] = 50,
    explanations: Annotated[
        list[str] | None,
        typer.Option(help="NAME=METRICS_JSON of `recgpt eval explanations` of a model, taken over into the table"),
    ] = None,
    reward: Annotated[str, typer.Option(help="the reward model: its name, or an adapter's directory")] = REWARD_MODEL,
    reward_url: Annotated[
        str, typer.Option(help="the reward model's server; one is started if none runs")
    ] = REWARD_BASE_URL,
    dataset: DatasetOption = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """V1, V2 untuned and tuned models on the same households: what they hit, and what their tags are like."""
    given = _named(arm or [], "--arm", "NAME=MODEL, such as sft=runs/train/sft/adapter")
    chosen = best or ([*given] or ["base"])[-1]
    if unknown := sorted({*given, chosen} - {*ARMS}):
        raise SettingError(f"there is no arm {', '.join(unknown)}; take some of {', '.join(ARMS)}")
    if split not in SPLITS:
        raise SettingError(f"there is no split {split!r}; take one of {', '.join(SPLITS)}")
    example = "NAME=METRICS_JSON, such as sft=runs/eval/explanations/metrics.json"
    files = {name: Path(file) for name, file in _named(explanations or [], "--explanations", example).items()}
    told = explanation_figures(files)
    models = {chosen: DEFAULT_MODEL, "v1": DEFAULT_MODEL, "base": BASE_MODEL, **given}
    settings = [*EVALUATION, *(setting or [])]
    contexts = {
        name: resolve_context(settings, dataset=dataset, base_url=base_url, model=models[name])
        for name in ARMS
        if name in models
    }
    common = contexts["v1"]
    data = open_dataset(common.dataset)
    everyone = split_cases(data, split)
    claim(out, {"split": split, "dataset": data.info.name})
    # What is chosen on the validation split is not measured in the weeks: they are a test.
    weeks = {week: week_cases(data, start, week_users) for week, start in WEEKS.items()} if split == "test" else {}
    for name, context in contexts.items():
        tagger = TAGGERS["v1" if name == "v1" else "v2"]
        asked = {split: everyone[:users], **(weeks if name == chosen else {})}
        with ExitStack() as stack:  # a CPU's server has one model: each arm has its own, one after another
            stack.enter_context(logging_to(LOG))
            for what, cases in asked.items():
                path = _runs_path(out, what, name)
                run_missing(stack, context, cases, path, concurrency, profile, f"{name} {what}", tagger)
    runs = {name: read_runs(_runs_path(out, split, name)) for name in contexts}
    arms = shared_runs(runs, everyone)
    for name, own in runs.items():
        if missing := len(own) - len(arms[name]):
            complain(
                name, f"{missing} households that another arm lacks are left out; --users {len(own)} asks them all"
            )
    aligned = [run for own in arms.values() for run in own[:align_users]]
    scores = _score_missing(common, reward, reward_url, aligned, out / "scores.jsonl", concurrency, profile)
    with reporting("measuring") as step:
        step("figures")
        embedder = open_embedder(common.embedding_model)
        of_weeks = {week: read_runs(_runs_path(out, week, chosen)) for week, cases in weeks.items() if cases}
        values = {
            **training_figures(arms, chosen, data, embedder, scores),
            **week_figures(of_weeks, data, embedder),
            **told,
        }
        write_metrics(out / "metrics.json", values)
        values = read_metrics(out / "metrics.json")
        step("page")
        write_training_page(out / "report.html", values, chosen)
    _show(values)
    say(f"figures: {out / 'metrics.json'}; page: {out / 'report.html'}")


def _named(texts: Sequence[str], option: str, expected: str) -> dict[str, str]:
    """Values by their names, in their order."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise SettingError(f"{option} {text!r}: expected {expected}")
        if name in found:
            raise SettingError(
                f"{option} {text!r} is the second of its name, after {name}={found[name]}; leave out one"
            )
        found[name] = value
    return found


def _runs_path(out: Path, what: str, arm: str) -> Path:
    """Where an arm's runs of a split or week are kept."""
    return out / "tags" / f"{what}.{arm}.jsonl"


def _score_missing(
    context: Context, reward: str, url: str, runs: Sequence[TagRun], out: Path, concurrency: int, profile: str
) -> Mapping[Key, Sequence[float]]:
    """Scores of the final tags of these runs, those that a file has not yet by the reward model."""
    weights = weights_name(reward)
    cut_to_whole_lines(out)
    kept = read_scores(out, weights)
    wanted = {scores_key(run): run for run in runs if run.tags}
    todo = [run for key, run in wanted.items() if key not in kept]
    if todo:
        dataset = open_dataset(context.dataset)
        with ExitStack() as stack:
            stack.enter_context(logging_to(LOG))
            with reporting("looking for the reward model's server") as step:
                server = running_server(named_profile(profile), reward, url, step, context.api_key.get_secret_value())
                stack.enter_context(server)
            index = open_index(dataset, open_embedder(context.embedding_model))
            write = stack.enter_context(counted_output(out, "alignment", len(wanted), len(wanted) - len(todo)))
            endpoint = Endpoint(url, reward, context.api_key, SCORE_TIMEOUT)
            asyncio.run(score_runs(endpoint, weights, dataset, index, todo, concurrency, write))
        kept = read_scores(out, weights)
    return {key: kept[key] for key in wanted}


def _show(values: Mapping[str, Estimate]) -> None:
    """The table of the arms on the terminal."""
    table = Table(title="mean [95 % interval] over households", title_justify="left")
    table.add_column("figure")
    rows = table_rows(values)
    for name in rows:
        table.add_column(name, justify="right")
    for place, figure in enumerate(FIGURES):
        cells = [row[place] for row in rows.values()]
        table.add_row(figure, *(f"{cell} n={cell.n}" if cell else "" for cell in cells))
    console.print(table)
