"""`recgpt recommend`: the main job for a list of households, a line each, and the report."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError
from rich.table import Table

from agents.context import AGENTS, HYBRID_AGENTS, JUDGE_AGENTS, Context
from agents.schemas import AgentUsage, Recommendation, Request
from graphs.recommend import graph
from recgpt.console import complain, console, progress_bar, reporting, say
from recgpt.output import Write, finished_users, open_output, read_lines
from recgpt.report import write_report
from tools.dataset import Dataset, open_dataset
from tools.embedding import open_embedder
from tools.errors import NoHistoryError, RecGPTError, ServerError, SettingError
from tools.llm import check_embeds
from tools.logs import logging_to
from tools.retrieval import embed_catalog
from tools.serving import named_profile, running_server, served_models

MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"]
LOG = Path("runs/recommend.log.jsonl")
PATIENT = "request_timeout=3600"
"""Of runs that ask about many households at a time, where a call waits for the others: with 16 on two slow cores a
planner's took 150 s on the mean, and reading the longest text that the window holds takes a minute alone."""
JUDGE_BASE_URL = "http://127.0.0.1:8401/v1"
"""Where the judge's server is started, if it needs one of its own."""


def recommend(
    dataset: Annotated[
        Path | None, typer.Option(help="data set directory", show_default="data/completejourney")
    ] = None,
    user: Annotated[list[str] | None, typer.Option(help="a user id; may be given several times")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="so many users, drawn by --seed")] = None,
    seed: Annotated[int, typer.Option(help="of the sample; for the model's sampling see --set seed=N")] = 0,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=MOMENTS, help="moment of the request", show_default="after the last event"),
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="grade each explanation")] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON lines", show_default="standard output, or beside --report")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an --out that is there already")] = False,
    report: Annotated[Path | None, typer.Option(help="HTML page to write")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="model server", show_default="one is started if none runs")
    ] = None,
    model: Annotated[str | None, typer.Option(help="model name at the server")] = None,
    profile: Annotated[str, typer.Option(help="how to start a server: cpu, cpu-compiled or fp8")] = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="households at a time")] = 4,
    setting: Annotated[list[str] | None, typer.Option("--set", help="any other setting, such as personas=4")] = None,
) -> None:
    """Recommend items with explanations: one JSON line a household."""
    context = resolve_context(setting or [], dataset=dataset, base_url=base_url, model=model, judge=judge or None)
    data = open_dataset(context.dataset)
    moment = as_of or data.last_event + timedelta(seconds=1)
    users, refused = choose_users(data, user or [], sample, seed, moment)
    anew = report is not None and out is None and not resume
    if report and out is None:
        out = report.with_suffix(".jsonl")
    if report and report == out:
        raise SettingError(
            f"--report and --out are the same file, {out}; give the page another name, such as page.html"
        )
    done = set() if anew else finished_users(out, resume, moment, context.overrides)
    todo = [user_id for user_id in users if user_id not in done]
    results: list[Recommendation] = []
    if todo:
        with ExitStack() as stack:
            stack.enter_context(logging_to(LOG))
            serve_for(stack, context, profile)
            if context.judge:
                context = serve_judge(stack, context, profile)
            with reporting("opening the index") as report_step:
                embed_catalog(data, open_embedder(context.embedding_model), report_step)
            if out and anew:  # beside a report that is written anew, the lines are too
                out.unlink(missing_ok=True)
            write = stack.enter_context(open_output(out))
            results, failed = asyncio.run(run_households(context, todo, moment, concurrency, write))
            refused += failed
    _summarise(results, out, len(done))
    if report and out and (todo or done):  # else there is no line, or but those of an earlier run
        write_report(report, read_lines(out))
        console.print(f"report: {report}", soft_wrap=True)
    for message in refused:
        complain("not done", message)
    if refused:
        raise typer.Exit(1)


def resolve_context(settings: Sequence[str], **arguments: object) -> Context:
    """The frozen context of a command: arguments that were given, then `--set`, then environment, then defaults."""
    given: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text!r}: expected NAME=VALUE, such as personas=4")
        given[name] = value
    given |= {name: value for name, value in arguments.items() if value is not None}
    try:
        return Context(**given)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}, found {f['input']!r}" for f in error.errors()]
        raise SettingError("setting " + "; ".join(faults)) from error


def resolve_judge(settings: Sequence[str], **arguments: object) -> Context:
    """The context of a judge that is run by itself: its agents ask `model` at `base_url`, and no judge of pages."""
    context = resolve_context(settings, **arguments)
    return context.model_copy(update={"judge_model": context.model, "judge_base_url": None})


def choose_users(
    data: Dataset, named: Sequence[str], sample: int | None, seed: int, moment: datetime
) -> tuple[list[str], list[str]]:
    """The users of a run, and for each that can't be served the reason. A fault of one is not one of the others."""
    if moment <= data.first_event:
        raise NoHistoryError(
            f"nothing happened before {moment:%Y-%m-%d %H:%M}: the first event of {data.directory} is at "
            f"{data.first_event:%Y-%m-%d %H:%M}; take a later --as-of"
        )
    if not named and sample is None:
        raise SettingError("no household was asked for: give --user ID or --sample N")
    users, refused = [], []
    for user_id in dict.fromkeys([*named, *(data.sample_users(sample, seed, moment) if sample else [])]):
        try:
            data.history(user_id, moment)
            users.append(user_id)
        except RecGPTError as error:
            refused.append(str(error))
    return users, refused


async def run_households(
    context: Context, users: Sequence[str], moment: datetime, concurrency: int, write: Write
) -> tuple[list[Recommendation], list[str]]:
    """Run the graph for each user and write each line when it is there.

    Raises:
        ServerError: the server is gone; what is finished is written, the rest is cancelled.
        OutputError: a line could not be written.
    """
    slots = asyncio.Semaphore(concurrency)
    results: list[Recommendation] = []
    failed: list[str] = []

    async def run(user_id: str) -> None:
        async with slots:
            run_id = uuid.uuid4()
            try:
                state = await graph.ainvoke(
                    Request(user_id=user_id, as_of=moment),
                    config={
                        "run_id": run_id,
                        "run_name": "recommend",
                        "metadata": {"run_id": str(run_id), "user_id": user_id},
                    },
                    context=context,
                )
            except RecGPTError as error:
                failed.append(f"household {user_id}: {error}")
                return
            except Exception as error:  # noqa: BLE001 (one household's surprise is not the others' loss)
                structlog.get_logger("recgpt").exception("household_failed", run_id=str(run_id), user_id=user_id)
                failed.append(f"household {user_id}: unexpected {error!r}; the traceback is in {LOG}")
                return
            result = Recommendation.model_validate(state)
            if any(failure.kind == "server_unreachable" for failure in result.failures):
                await _give_up_if_gone(context, len(results), len(users))
            write(result)
            results.append(result)
            progress.advance(task)
            say(
                f"household {user_id}: {len(result.personas)} personas, {len(result.tags)} tags, "
                f"{len(result.items)} items, {len(result.failures)} failures, "
                f"{result.usage.llm_calls} calls, {result.usage.seconds:.0f} s",
            )

    with progress_bar() as progress:
        task = progress.add_task("households", total=len(users))
        tasks = [asyncio.create_task(run(user_id)) for user_id in users]
        try:
            await asyncio.gather(*tasks)
        finally:
            for pending in tasks:
                pending.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return results, failed


async def _give_up_if_gone(context: Context, finished: int, total: int) -> None:
    """A server that only hiccuped gives a degraded line; one that is gone ends the run."""
    if await asyncio.to_thread(served_models, context.base_url, context.api_key.get_secret_value()) is None:
        raise ServerError(
            f"the model server at {context.base_url} stopped answering after {finished} of {total} households; "
            "their lines are kept. Start it again and run the same command with --resume"
        )


def serve_for(stack: ExitStack, context: Context, profile: str) -> None:
    """Have a server: one that was named must run, the default one is started if it does not."""
    key = context.api_key.get_secret_value()
    if "base_url" in context.model_fields_set and served_models(context.base_url, key) is None:
        raise ServerError(
            f"no server answers at {context.base_url}; start one there, for example with "
            f"`recgpt serve --base-url {context.base_url}`, or leave out --base-url"
        )
    with reporting("looking for a model server") as report_step:
        server = running_server(
            named_profile(profile),
            context.model,
            context.base_url,
            report_step,
            key,
            context.models(*(agent for agent in AGENTS if agent not in JUDGE_AGENTS)),
        )
        stack.enter_context(server)
        if context.representation == "hybrid":
            for endpoint in {context.endpoint(agent) for agent in HYBRID_AGENTS}:
                asyncio.run(check_embeds(endpoint))


def serve_judge(stack: ExitStack, context: Context, profile: str) -> Context:
    """Have a server for the judge's agents too; the context then names it.

    It is that of the other agents where it serves the judge's model, as on a GPU. A server of merged weights has one
    model: then the judge has a second server, which is started where none runs.
    """
    key = context.api_key.get_secret_value()
    wanted = context.models(*JUDGE_AGENTS)
    if context.judge_base_url is None and wanted <= set(served_models(context.base_url, key) or []):
        return context
    url = context.judge_base_url or JUDGE_BASE_URL
    with reporting("looking for the judge's server") as report_step:
        model = context.endpoint(JUDGE_AGENTS[0]).model
        stack.enter_context(running_server(named_profile(profile), model, url, report_step, key, wanted))
    return context.model_copy(update={"judge_base_url": url})


def _summarise(results: Sequence[Recommendation], out: Path | None, earlier: int) -> None:
    """Costs by agent (medians a household), and how often the model's answers held."""
    if earlier:
        console.print(f"{earlier} households were there already")
    if not results:
        return
    by_agent: dict[str, list[AgentUsage]] = defaultdict(list)
    for result in results:
        for agent, usage in result.usage.by_agent.items():
            by_agent[agent].append(usage)
    table = Table(title="a household, median", title_justify="left")
    for column in ("agent", "calls", "valid at first try", "prompt tokens", "completion tokens", "seconds"):
        table.add_column(column, justify="left" if column == "agent" else "right")
    for agent, usages in by_agent.items():
        valid, first = sum(u.valid_at_first_try for u in usages), sum(u.first_tries for u in usages)
        table.add_row(
            agent,
            f"{median(u.llm_calls for u in usages):g}",
            f"{valid} of {first}",
            f"{median(u.prompt_tokens for u in usages):,.0f}",
            f"{median(u.completion_tokens for u in usages):,.0f}",
            f"{median(u.seconds for u in usages):.1f}",
        )
    console.print(table)
    failures = sum(len(result.failures) for result in results)
    console.print(
        f"{len(results)} households, {sum(len(result.items) for result in results)} items, {failures} failures, "
        f"{sum(len(result.rejected) for result in results)} rejected answers; "
        f"{median(result.usage.seconds for result in results):.0f} s a household (median)"
        + (f"; lines: {out}" if out else ""),
        soft_wrap=True,
        highlight=False,
    )
