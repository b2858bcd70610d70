"""What explanations are worth (section 6): V1's fixed prompt and V2's two stages on the same items and households."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from rouge_score.rouge_scorer import RougeScorer

from agents.assembler import explanation_task
from agents.calls import gather_all, raise_if_gone
from agents.claims import is_of_signal, unfounded
from agents.context import Context
from agents.judging import explanation_judge_task
from agents.schemas import CallRecord, Claim, ExplanationTask, Failure, RecommendedItem, Request, Verdict
from agents.state import ExplanationState
from eval.agreement import GRADES
from eval.metrics import Estimate, estimate, relative
from eval.page import BLUE, GREEN, draw_bars, list_of, svg_of, write_page
from eval.splits import Case
from graphs.explanation import graph as explanation_graph
from graphs.fixed_explanation import graph as fixed_explanation_graph
from graphs.judge import graph as judge_graph
from graphs.recommend import build_recommend_graph
from prompts.rubric import load_rubrics

System = Literal["v1", "v2"]
ExplanationGraph = CompiledStateGraph[ExplanationState, Context, ExplanationTask, Any]
SYSTEMS: dict[System, ExplanationGraph] = {"v1": fixed_explanation_graph, "v2": explanation_graph}
OF_THE_MOMENT = ("occasion", "trend", "promotion")
"""Kinds of claims that speak of the moment."""


class ExplanationRun(BaseModel):
    """One explanation of one item of one household, and its verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str
    as_of: datetime
    system: System
    item: RecommendedItem
    verdict: Verdict | None
    calls: list[CallRecord]
    failures: list[Failure]

    @property
    def key(self) -> tuple[str, str, System]:
        """What is run once."""
        return self.user_id, self.item.item_id, self.system


async def page_tasks(
    context: Context, cases: Sequence[Case], concurrency: int, report: Callable[[str], None]
) -> list[ExplanationTask]:
    """The items that the graph `recommend` puts on each household's page, as what their explanations are written from.

    Args:
        context: of all cases.
        cases: households at a moment each.
        concurrency: households at a time.
        report: called with a sentence on the progress.
    """
    compiled = build_recommend_graph().compile(checkpointer=InMemorySaver(), interrupt_after=["retrieve_items"])
    slots = asyncio.Semaphore(concurrency)
    done = 0

    async def tasks_of(case: Case) -> list[ExplanationTask]:
        nonlocal done
        async with slots:
            config: Any = {"configurable": {"thread_id": case.user_id}}
            await compiled.ainvoke(Request(user_id=case.user_id, as_of=case.as_of), config, context=context)
            state: Any = (await compiled.aget_state(config)).values
            raise_if_gone(state.get("failures", []))
            await compiled.checkpointer.adelete_thread(case.user_id)  # type: ignore[union-attr]
        done += 1
        report(f"pages: {done} of {len(cases)} households")
        return [explanation_task(state, item) for item in state["items"]]

    found = await asyncio.gather(*(tasks_of(case) for case in cases))
    return [task for tasks in found for task in tasks]


def shared_items(tasks: Sequence[ExplanationTask], pairs: int, households: int) -> list[ExplanationTask]:
    """Of items that several households are shown so many pairs: `households` of each, the most often shown items first.

    Args:
        tasks: one an item and household.
        pairs: how many are wanted.
        households: of one item: diversity is among its explanations.
    """
    by_item: defaultdict[str, list[ExplanationTask]] = defaultdict(list)
    for task in tasks:
        by_item[task.item.item_id].append(task)
    often = sorted(by_item.values(), key=lambda own: (-len(own), own[0].item.item_id))
    return [task for own in often if len(own) >= households for task in own[:households]][:pairs]


async def explain_tasks(
    explaining: Context,
    tasks: Sequence[tuple[ExplanationTask, System]],
    concurrency: int,
    write: Callable[[ExplanationRun], None],
) -> None:
    """Write the explanations of both systems; `write` gets each run, without verdict, when it is there.

    Raises:
        RecGPTError: the server is gone; what is written is kept.
    """
    slots = asyncio.Semaphore(concurrency)

    async def run(task: ExplanationTask, system: System) -> None:
        async with slots:
            state = await SYSTEMS[system].ainvoke(task, context=explaining)
        raise_if_gone(state.get("failures", []))
        explained = state.get("explained", [])
        write(
            ExplanationRun(
                user_id=task.user_id,
                as_of=task.as_of,
                system=system,
                item=explained[0] if explained else task.item,
                verdict=None,
                calls=state.get("calls", []),
                failures=state.get("failures", []),
            )
        )

    await gather_all([run(task, system) for task, system in tasks])


async def judge_explanations(
    judging: Context,
    runs: Sequence[tuple[ExplanationRun, ExplanationTask]],
    concurrency: int,
    write: Callable[[ExplanationRun], None],
) -> None:
    """Judge explanations; `write` gets each run with its verdict when it is there.

    Raises:
        RecGPTError: the server is gone; what is judged is kept.
    """
    slots = asyncio.Semaphore(concurrency)

    async def judge(run: ExplanationRun, task: ExplanationTask) -> None:
        told = task.model_copy(update={"item": run.item})
        async with slots:
            state = await judge_graph.ainvoke(explanation_judge_task(told, run.item.explanation or ""), context=judging)
        raise_if_gone(state.get("failures", []))
        judged = state.get("judged", [])
        write(run.model_copy(update={"verdict": judged[0]["verdict"] if judged else None}))

    await gather_all([judge(run, task) for run, task in runs])


def diversity(texts: Sequence[str]) -> float | None:
    """`1 - mean pairwise ROUGE-L` (F) among explanations of one item (section 6); None of fewer than two."""
    if len(texts) < 2:
        return None
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(one, other)["rougeL"].fmeasure for one, other in combinations(texts, 2)]
    return 1 - float(np.mean(scores))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words for one n-gram, over all texts; 0 where there is none."""
    grams = [
        tuple(words[start : start + n])
        for text in texts
        for words in [re.findall(r"\w+", text.casefold())]
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def is_timely(claims: Sequence[Claim]) -> bool:
    """Whether a text mentions a signal that holds, and none that doesn't."""
    of_moment = [claim for claim in claims if claim.kind in OF_THE_MOMENT]
    return any(map(is_of_signal, of_moment)) and not unfounded(of_moment)


def explanation_figures(runs: Sequence[ExplanationRun]) -> dict[str, Estimate]:
    """`<system>.<figure>`, and `gain.diversity`, what V2 has relative to V1 on the same items.

    Figures: `diversity` by item, `distinct_1` and `distinct_2`, `timeliness`, `grounded` (share without an unfounded
    claim), `plain` (share that the fallback wrote), `words`; and where there are verdicts `superior`, `pass_rate`
    (share without a fault in any of the seven dimensions) and `pass.<dimension>`.
    """
    graded = [rubric.dimension for rubric in load_rubrics("explanations") if rubric.graded]
    figures: dict[str, Estimate] = {}
    diverse: dict[System, dict[str, float]] = {}
    for system in SYSTEMS:
        own = [run for run in runs if run.system == system and run.item.explanation]
        if not own:
            continue
        texts = [run.item.explanation or "" for run in own]
        by_item: defaultdict[str, list[str]] = defaultdict(list)
        for run, text in zip(own, texts, strict=True):
            by_item[run.item.item_id].append(text)
        diverse[system] = {item: value for item, told in by_item.items() if (value := diversity(told)) is not None}
        faults = [unfounded(run.item.claims or []) for run in own]
        found = {
            "diversity": estimate(list(diverse[system].values())),
            **{f"distinct_{n}": Estimate(*(distinct_n(texts, n),) * 3, n=len(texts)) for n in (1, 2)},
            "timeliness": estimate([float(is_timely(run.item.claims or [])) for run in own]),
            "grounded": estimate([float(not fault) for fault in faults]),
            "plain": estimate([float(run.item.explanation_source == "plain") for run in own]),
            "words": estimate([float(len(text.split())) for text in texts]),
        }
        verdicts = [run.verdict for run in own]
        if any(verdicts):  # a text without a verdict has passed nothing
            labels = [
                {label.dimension: label.label for label in verdict.labels} if verdict else {} for verdict in verdicts
            ]
            passed = {name: [float(told.get(name, "negative") != "negative") for told in labels] for name in graded}
            found["superior"] = estimate([float(one is not None and one.grade == GRADES[-1]) for one in verdicts])
            found["pass_rate"] = estimate([min(values) for values in zip(*passed.values(), strict=True)])
            found |= {f"pass.{name}": estimate(values) for name, values in passed.items()}
        figures |= {f"{system}.{name}": value for name, value in found.items()}
    shared = sorted(diverse.get("v1", {}).keys() & diverse.get("v2", {}).keys())
    if shared:
        figures["gain.diversity"] = relative(
            [diverse["v2"][item] for item in shared], [diverse["v1"][item] for item in shared]
        )
    return figures


def write_explanations_page(path: Path, values: Mapping[str, Estimate]) -> None:
    """The page of the figures, by their keys in `metrics.json`."""
    names = dict.fromkeys(
        key.split(".", 2)[2] for key in values if key.startswith(("explanations.v1.", "explanations.v2."))
    )
    plots = {
        name: _pair(values, name)
        for name in names
        if name in ("diversity", "distinct_2", "timeliness", "grounded", "pass_rate", "superior")
        or name.startswith("pass.")
    }
    write_page(
        path,
        "Explanations",
        "V1's fixed prompt and V2's style guideline and text, the same model, on the same items and households. "
        "Means with 95 % bootstrap intervals.",
        plots,
        [list_of("All figures", values)],
    )


def _pair(values: Mapping[str, Estimate], name: str) -> str:
    found: dict[str, Estimate] = {
        system: values[key] for system in SYSTEMS if (key := f"explanations.{system}.{name}") in values
    }
    plot = Figure(figsize=(7.5, 0.5 + 0.3 * len(found)), layout="constrained")
    draw_bars(plot.subplots(), found, {"v1": BLUE, "v2": GREEN})
    return svg_of(plot)
