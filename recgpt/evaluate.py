"""`recgpt eval`: measure what the agents do, on baskets that no weight has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from agents.context import Context
from eval.metrics import Estimate
from eval.offline import (
    Evaluation,
    figures,
    list_classical,
    list_figures,
    open_evaluation,
    read_metrics,
    write_metrics,
)
from eval.report import short_table, write_evaluation_page
from eval.splits import VALIDATION_BASKET, Case, basket_cases
from eval.systems import (
    SPLITS,
    TAGGERS,
    Utility,
    allocation_figures,
    list_systems,
    open_utility,
    read_system,
    runs_path,
    system_figures,
    tokens_by_agent,
)
from eval.tags import Tagger, TagRun, compare_arms, read_own_runs, read_runs, run_cases
from graphs.intent import graph as intent_graph
from recgpt.console import complain, console, reporting, say
from recgpt.output import counted_output, cut_to_whole_lines
from recgpt.recommend import PATIENT, resolve_context, serve_for
from tools.answers import open_answers
from tools.dataset import open_dataset
from tools.embedding import Embedder, open_embedder
from tools.errors import ModelFilesError, OutputError
from tools.logs import logging_to
from tools.retrieval import embed_catalog

LOG = Path("runs/eval.log.jsonl")
ANSWERS = Path("runs/answers.sqlite")
"""Arms share what they ask alike, and a run that is repeated asks nothing."""
EVALUATION = (f"answers={ANSWERS}", PATIENT)
"""Settings of every evaluation, which `--set` may change."""
SHIPPED_ANSWERS = Path(__file__).parent.parent / "eval" / "answers.jsonl.xz"
"""What the README's figures were made from."""


DatasetOption = Annotated[Path | None, typer.Option("--dataset", help="data set directory")]
Model = Annotated[str | None, typer.Option(help="model name at the server")]
BaseUrl = Annotated[str | None, typer.Option(help="model server", show_default="one is started if none runs")]
Profile = Annotated[str, typer.Option(help="how to start a server: cpu, cpu-compiled or fp8")]
Concurrency = Annotated[int, typer.Option(min=1, help="households at a time")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="any other setting, such as shelf=0")]
Out = Annotated[Path, typer.Option(help="directory of the results; goes on with what is there")]
Users = Annotated[int, typer.Option(min=1, help="the first so many evaluation households")]
WeekUsers = Annotated[int, typer.Option(min=0, help="households that V1 and V2 are asked about in each week")]
Everyone = Annotated[bool, typer.Option("--all", help="every household")]
OFFLINE = Path("runs/eval/offline")
TABLE_BEGIN, TABLE_END = "<!-- made by `recgpt eval table --into eval/README.md` -->", "<!-- end of table -->"


def arm(
    out: Annotated[Path, typer.Option(help="JSON lines, one a household; goes on with one that is there")],
    users: Annotated[int, typer.Option(min=1, help="households")] = 200,
    seed: Annotated[int, typer.Option(help="of the draw of households")] = 7,
    dataset: DatasetOption = None,
    model: Model = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Run planner, experts and arbiter before households' last basket but one (validation): one arm of `compare`."""
    context = resolve_context([*EVALUATION, *(setting or [])], dataset=dataset, base_url=base_url, model=model)
    cases = basket_cases(open_dataset(context.dataset), VALIDATION_BASKET, users, seed)
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        run_missing(stack, context, cases, out, concurrency, profile, "households", intent_graph)
    say(f"{len(cases)} households in {out}; `recgpt eval compare {out}` shows the figures")


def tags(
    out: Out = OFFLINE,
    users: Users = 500,
    everyone: Everyone = False,
    week_users: WeekUsers = 50,
    dataset: DatasetOption = None,
    model: Model = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Let V1 and V2 write tags before households' last baskets and at the start of the environment weeks."""
    context = resolve_context([*EVALUATION, *(setting or [])], dataset=dataset, base_url=base_url, model=model)
    run = open_evaluation(open_dataset(context.dataset), out, None if everyone else users)
    _run_systems(run, context, week_users, profile, concurrency)
    _measure(run, context)


def retrieval(
    out: Out = OFFLINE,
    users: Users = 500,
    everyone: Everyone = False,
    dataset: DatasetOption = None,
    setting: Setting = None,
) -> None:
    """Fit the recommenders that read no text, and measure what they list before households' last baskets."""
    context = resolve_context(setting or [], dataset=dataset)
    run = open_evaluation(open_dataset(context.dataset), out, None if everyone else users)
    with reporting("recommenders that read no text") as step:
        list_classical(run, step)
    _measure(run, context)


def everything(
    out: Out = OFFLINE,
    users: Users = 500,
    everyone: Everyone = False,
    week_users: WeekUsers = 50,
    dataset: DatasetOption = None,
    model: Model = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """All of it: recommenders that read no text, V1 and V2, both channels together, figures and a page with plots."""
    context = resolve_context([*EVALUATION, *(setting or [])], dataset=dataset, base_url=base_url, model=model)
    run = open_evaluation(open_dataset(context.dataset), out, None if everyone else users)
    with reporting("recommenders that read no text") as step:
        list_classical(run, step)
    _run_systems(run, context, week_users, profile, concurrency)
    _measure(run, context)


def _run_systems(run: Evaluation, context: Context, week_users: int, profile: str, concurrency: int) -> None:
    """Let V1 and V2 write the tags that are not there yet."""
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        for system, tagger in TAGGERS.items():
            for split in SPLITS:
                cases = run.cases(split, run.users if split == "test" else week_users)
                path = runs_path(run, system, split)
                run_missing(stack, context, cases, path, concurrency, profile, f"{system} {split}", tagger)


def run_missing(
    stack: ExitStack,
    context: Context,
    cases: Sequence[Case],
    out: Path,
    concurrency: int,
    profile: str,
    what: str,
    tagger: Tagger,
    budgets: Mapping[str, int] = {},
) -> None:
    """Run the cases that a file has not yet, a line each; a server is started where none runs and some are missing.

    `budgets`: see `run_cases`.
    """
    cut_to_whole_lines(out)
    done = {(run.user_id, run.as_of) for run in read_own_runs(out, context, budgets)}
    todo = [case for case in cases if (case.user_id, case.as_of) not in done]
    if not todo:
        return
    serve_for(stack, context, profile)
    with reporting("opening the index") as step:
        embed_catalog(open_dataset(context.dataset), open_embedder(context.embedding_model), step)
    with counted_output(out, what, len(cases), len(cases) - len(todo)) as write_line:

        def write(run: TagRun) -> None:
            write_line(run)
            say(f"{what}: {run.user_id}: {len(run.personas)} personas, {len(run.tags)} tags")

        asyncio.run(run_cases(context, todo, concurrency, write, tagger, budgets))


def _utility(run: Evaluation, context: Context, embedder: Embedder) -> Utility | None:
    try:
        return open_utility(run.dataset, embedder, context.towers, context.ranker)
    except ModelFilesError as error:
        complain("without the utility channel", str(error))
        return None


def _measure(run: Evaluation, context: Context) -> None:
    """Figures and page from whatever is there by now."""
    with reporting("measuring") as step:
        embedder = open_embedder(context.embedding_model)
        utility = _utility(run, context, embedder)
        list_systems(run, embedder, utility, step)
        step("figures")
        _, leaf_vectors = embed_catalog(run.dataset, embedder)
        values = {**figures(run), **list_figures(run, leaf_vectors), **system_figures(run, embedder)}
        if utility:
            values |= allocation_figures(run, utility, context)
        metrics = run.out / "metrics.json"
        write_metrics(metrics, values)
        step("page")
        tokens = {system: tokens_by_agent(read_system(run, system, "test")[: run.users]) for system in TAGGERS}
        write_evaluation_page(run.out / "report.html", read_metrics(metrics), tokens)
    say(f"figures: {metrics}; page: {run.out / 'report.html'}")


def table(
    metrics: Annotated[Path, typer.Argument(help="metrics.json of `recgpt eval all`")] = OFFLINE / "metrics.json",
    into: Annotated[Path | None, typer.Option(help="Markdown file whose table between the markers is replaced")] = None,
) -> None:
    """The short table of models in Markdown: printed, or put into a file between its two markers."""
    values = read_metrics(metrics)
    day = date.fromtimestamp(metrics.stat().st_mtime)
    text = f"Measured on {day:%Y-%m-%d}. {short_table(values)}"
    if into is None:
        sys.stdout.write(text + "\n")
        return
    if not into.is_file():
        raise OutputError(f"there is no file {into} to put the table into")
    before, begin, rest = into.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise OutputError(f"{into} lacks a place for the table: expected the lines {TABLE_BEGIN} and {TABLE_END}")
    into.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    say(f"table of {metrics} in {into}")


def answers(
    file: Annotated[Path, typer.Argument(help="compressed answers")] = SHIPPED_ANSWERS,
    save: Annotated[
        bool, typer.Option("--save", help="write the file from the kept answers, not the other way")
    ] = False,
    kept: Annotated[Path, typer.Option(help="where `recgpt eval` keeps the models' answers")] = ANSWERS,
) -> None:
    """Take over recorded answers of models, so that what was asked before costs nothing; or record them."""
    store = open_answers(kept)
    if save:
        say(f"{store.save(file):,} answers of {kept} in {file}")
    else:
        say(f"{store.load(file):,} answers of {file} in {kept}")


def compare(
    files: Annotated[list[Path], typer.Argument(help="outputs of `recgpt eval arm`, one an arm")],
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """Figures of arms beside popularity and the shelf's own order, on the households that all arms have."""
    if len({path.stem for path in files}) < len(files):
        raise OutputError(f"two of {', '.join(map(str, files))} have one name: an arm is called by its file's name")
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
