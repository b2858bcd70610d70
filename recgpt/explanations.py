"""`recgpt eval explanations`: what V2's explanations are worth beside V1's."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from agents.explainer import FIXED_PROMPT
from eval.explanations import (
    SYSTEMS,
    ExplanationRun,
    explain_tasks,
    explanation_figures,
    judge_explanations,
    page_tasks,
    shared_items,
    write_explanations_page,
)
from eval.lines import read_json_lines
from eval.offline import write_metrics
from eval.splits import evaluation_cases
from recgpt.console import complain, reporting, say
from recgpt.evaluate import EVALUATION, LOG, BaseUrl, Concurrency, DatasetOption, Model, Out, Profile, Setting, Users
from recgpt.judge import digest_of, judge_digest
from recgpt.output import counted_output, cut_to_whole_lines
from recgpt.recommend import resolve_context, resolve_judge, serve_for
from tools.dataset import open_dataset
from tools.logs import logging_to
from tools.models import JUDGE_MODEL, weights_name
from training.runs import claim


def explanations(
    out: Out = Path("runs/eval/explanations"),
    users: Users = 500,
    skip: Annotated[int, typer.Option(min=0, help="households passed over: those whose texts made the rules")] = 0,
    pairs: Annotated[int, typer.Option(min=2, help="items of households that are explained")] = 300,
    households: Annotated[int, typer.Option(min=2, help="of one item: diversity is among its explanations")] = 5,
    dataset: DatasetOption = None,
    model: Model = None,
    judge: Annotated[str, typer.Option(help="model of the judge; empty for no verdicts")] = JUDGE_MODEL,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Explain the same items of the same households as V1 and as V2 do, and have the judge grade both."""
    settings = [*EVALUATION, *(setting or [])]
    context = resolve_context(settings, dataset=dataset, base_url=base_url, model=model)
    judging = resolve_judge(settings, dataset=dataset, base_url=base_url, model=judge or model)
    cases = evaluation_cases(open_dataset(context.dataset), skip + users)[skip:]
    claim(
        out,
        {
            "weights": weights_name(context.model),
            "judge": weights_name(judging.model),
            "judged_by": judge_digest(judging),
            "prompts": digest_of(
                [("style", context.style_prompt), ("explainer", context.explainer_prompt), ("explainer", FIXED_PROMPT)]
            ),
            "settings": sorted(setting or []),
            "pairs": pairs,
            "households": households,
            "users": len(cases),
            "skipped": skip,
        },
    )
    texts, judged = out / "texts.jsonl", out / "judged.jsonl"
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        serve_for(stack, context, profile)
        with reporting("pages") as step:
            found = asyncio.run(page_tasks(context, cases, concurrency, step))
        chosen = shared_items(found, pairs, households)
        if len(chosen) < pairs:
            complain("pairs", f"only {len(chosen)} of items that {households} of {len(cases)} households are shown")
        tasks = {(task.user_id, task.item.item_id): task for task in chosen}
        todo = [(task, system) for task in chosen for system in SYSTEMS]
        cut_to_whole_lines(texts)
        done = {run.key for run in read_runs(texts)}
        missing = [(task, system) for task, system in todo if (task.user_id, task.item.item_id, system) not in done]
        with counted_output(texts, "explanations", len(todo), len(todo) - len(missing)) as write:
            asyncio.run(explain_tasks(context, missing, concurrency, write))
    if judge:
        cut_to_whole_lines(judged)
        done = {run.key for run in read_runs(judged)}
        written = [run for run in read_runs(texts) if run.item.explanation and run.key[:2] in tasks]
        unjudged = [(run, tasks[run.key[:2]]) for run in written if run.key not in done]
        with ExitStack() as stack:
            stack.enter_context(logging_to(LOG))
            if unjudged:
                serve_for(stack, judging, profile)
            write = stack.enter_context(counted_output(judged, "verdicts", len(todo), len(done)))
            asyncio.run(judge_explanations(judging, unjudged, concurrency, write))
    runs = [run for run in read_runs(judged if judge else texts) if run.key[:2] in tasks]
    values = {f"explanations.{key}": value for key, value in explanation_figures(runs).items()}
    write_metrics(out / "metrics.json", values)
    write_explanations_page(out / "report.html", values)
    say(f"figures: {out / 'metrics.json'}; page: {out / 'report.html'}")


def read_runs(path: Path) -> list[ExplanationRun]:
    """Explanations that are written so far."""
    return read_json_lines(path, ExplanationRun)
