"""`recgpt eval`: measure what the agents do, on baskets that no weight has seen."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from agents.context import Context
from eval.metrics import Estimate
from eval.offline import figures, list_classical, open_evaluation, write_metrics
from eval.splits import VALIDATION_BASKET, basket_cases
from eval.tags import TagRun, compare_arms, read_own_runs, read_runs, run_cases
from recgpt.console import console, progress_bar, reporting, say
from recgpt.output import cut_to_whole_lines, open_output
from recgpt.recommend import resolve_context, serve_for
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.logs import logging_to
from tools.retrieval import embed_catalog

LOG = Path("runs/eval.log.jsonl")
ANSWERS = Path("runs/answers.sqlite")
"""Arms share what they ask alike, and a run that is repeated asks nothing."""


def tags(
    out: Annotated[Path, typer.Option(help="JSON lines, one a household; goes on with one that is there")],
    users: Annotated[int, typer.Option(min=1, help="households")] = 200,
    seed: Annotated[int, typer.Option(help="of the draw of households")] = 7,
    dataset: Annotated[Path | None, typer.Option(help="data set directory")] = None,
    model: Annotated[str | None, typer.Option(help="model name at the server")] = None,
    base_url: Annotated[str | None, typer.Option(help="model server [default: one is started if none runs]")] = None,
    profile: Annotated[str, typer.Option(help="how to start a server: cpu or fp8")] = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="households at a time")] = 8,
    setting: Annotated[list[str] | None, typer.Option("--set", help="any other setting, such as shelf=0")] = None,
) -> None:
    """Run planner, experts and arbiter before households' last basket but one (validation): one arm of `compare`."""
    context = resolve_context([f"answers={ANSWERS}", *(setting or [])], dataset=dataset, base_url=base_url, model=model)
    data = open_dataset(context.dataset)
    cases = basket_cases(data, VALIDATION_BASKET, users, seed)
    cut_to_whole_lines(out)
    done = {run.user_id for run in read_own_runs(out, context)}
    todo = [case for case in cases if case.user_id not in done]
    if todo:
        with ExitStack() as stack:
            stack.enter_context(logging_to(LOG))
            serve_for(stack, context, profile)
            with reporting("opening the index") as step:
                embed_catalog(data, open_embedder(context.embedding_model), step)
            write_line = stack.enter_context(open_output(out))
            progress = stack.enter_context(progress_bar())
            task = progress.add_task("households", total=len(cases), completed=len(cases) - len(todo))

            def write(run: TagRun) -> None:
                write_line(run)
                progress.advance(task)
                say(f"household {run.user_id}: {len(run.personas)} personas, {len(run.tags)} tags")

            asyncio.run(run_cases(context, todo, concurrency, write))
    say(f"{len(cases)} households in {out}; `recgpt eval compare {out}` shows the figures")


def retrieval(
    out: Annotated[Path, typer.Option(help="directory of the results; goes on with what is there")] = Path(
        "runs/eval/offline"
    ),
    users: Annotated[int, typer.Option(min=1, help="the first so many evaluation households")] = 500,
    everyone: Annotated[bool, typer.Option("--all", help="every household")] = False,
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
) -> None:
    """Fit the recommenders that read no text, and measure what they list before households' last baskets."""
    with reporting("reading purchases") as step:
        run = open_evaluation(open_dataset(dataset), out, None if everyone else users)
        list_classical(run, step)
        step("measuring")
        write_metrics(out / "metrics.json", figures(run))
    say(f"figures: {out / 'metrics.json'}")


def compare(
    files: Annotated[list[Path], typer.Argument(help="outputs of `recgpt eval tags`, one an arm")],
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """Figures of arms beside popularity and the shelf's own order, on the households that all arms have."""
    arms = {path.stem: read_runs(path) for path in files}
    embedder = open_embedder(Context(dataset=dataset).embedding_model)
    with reporting("measuring") as step:
        step("measuring")
        compared = compare_arms(arms, open_dataset(dataset), embedder)
    rows = list(dict.fromkeys(key for arm in compared.values() for key in arm))
    table = Table(title="mean [95 % interval] over households", title_justify="left")
    table.add_column("figure")
    for name in compared:
        table.add_column(name, justify="right")
    for key in rows:
        table.add_row(key, *(_cell(arm.get(key)) for arm in compared.values()))
    console.print(table)
    if out:
        metrics = {
            f"tags.{arm}.{key}": asdict(value) for arm, values in compared.items() for key, value in values.items()
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        say(f"figures: {out}")


def _cell(value: Estimate | None) -> str:
    return "" if value is None else f"{value} n={value.n}"
