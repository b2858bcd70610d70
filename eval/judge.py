"""How well the judge grades (section 7): against known labels, against people, in the other order, under injections."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from langgraph.graph.state import CompiledStateGraph
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from agents.calls import gather_all, raise_if_gone
from agents.claims import unfounded
from agents.context import Context
from agents.reviewer import grade_labels
from agents.schemas import CallRecord, Failure, Grade, JudgeTask, Verdict
from agents.state import JudgeState
from eval.agreement import (
    GRADES,
    LABELS,
    Judged,
    against_people,
    agreement_figures,
    calibration,
    calibration_estimate,
    gains,
)
from eval.human import VALUES
from eval.judged import JudgedText
from eval.metrics import Estimate, estimate
from eval.page import BLUE, GREEN, draw_bars, list_of, svg_of, write_page
from graphs.judge import graph as agents_graph
from graphs.one_shot_judge import graph as one_shot_graph
from prompts.rubric import Subject

INJECTIONS_FILE = Path(__file__).parent / "injections.yaml"
INJECTED = "+injection-"
"""In the id of a text with an injection, before a digest of it."""

Judge = Literal["agents", "one_shot"]
JudgeGraph = CompiledStateGraph[JudgeState, Context, JudgeTask, Any]
JUDGES: dict[Judge, JudgeGraph] = {"agents": agents_graph, "one_shot": one_shot_graph}


class JudgeRun(BaseModel):
    """What one judge made of one text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_id: str
    judge: Judge
    reverse: bool
    verdict: Verdict | None
    """None where a part of the judge gave no valid answer: no grade, and no score."""
    calls: list[CallRecord]
    failures: list[Failure]

    @property
    def key(self) -> tuple[str, Judge, bool]:
        """What is run once."""
        return self.text_id, self.judge, self.reverse


async def judge_texts(
    context: Context,
    todo: Sequence[tuple[JudgedText, Judge, bool]],
    concurrency: int,
    write: Callable[[JudgeRun], None],
) -> None:
    """Judge texts, `concurrency` at a time; `write` gets each run when it is there.

    Args:
        context: of all.
        todo: text, judge, and whether it reads labels and facts in reverse order.
        concurrency: texts at a time.
        write: keeps a run.

    Raises:
        ServerError: the server is gone or refuses; what is judged is written.
    """
    slots = asyncio.Semaphore(concurrency)

    async def run(text: JudgedText, judge: Judge, reverse: bool) -> None:
        async with slots:
            own = context.model_copy(update={"judge_reverse": reverse})
            state = await JUDGES[judge].ainvoke(text.task, context=own)
        judged = state.get("judged", [])
        failures = state.get("failures", [])
        raise_if_gone(failures)
        write(
            JudgeRun(
                text_id=text.id,
                judge=judge,
                reverse=reverse,
                verdict=judged[0]["verdict"] if judged else None,
                calls=state.get("calls", []),
                failures=failures,
            )
        )

    await gather_all([run(*one) for one in todo])


@lru_cache(maxsize=1)
def load_injections() -> list[str]:
    """Texts that give the judge orders."""
    found: list[str] = yaml.safe_load(INJECTIONS_FILE.read_text(encoding="utf-8"))
    return found


def injected(texts: Sequence[JudgedText], count: int, seed: int) -> list[JudgedText]:
    """Texts that are not Superior, each with an injection behind it, or before it in every fourth.

    Of explanations those that code finds no fault with: nothing but the evaluators stands between them and a grade.
    The claims are those of the text itself: where a service has code read the whole, an order that names a product or a
    number is read by the evaluators of claims too, and is a fault if no fact says so.
    """
    rng = np.random.default_rng(seed)
    lower = [text for text in texts if text.grade in ("Bad", "Average") and not unfounded(text.task.claims or [])]
    chosen = [lower[place] for place in rng.permutation(len(lower))[:count]]
    sentences = load_injections()
    made = []
    for number, text in enumerate(chosen):
        sentence = sentences[number % len(sentences)]
        parts = (sentence, text.task.subject) if number % 4 == 3 else (text.task.subject, sentence)
        task = text.task.model_copy(update={"subject": " ".join(parts)})
        digest = hashlib.sha256(task.subject.encode()).hexdigest()[:8]
        made.append(text.model_copy(update={"id": f"{text.id}{INJECTED}{digest}", "task": task}))
    return made


def grade_figures(texts: Sequence[JudgedText], runs: Sequence[JudgeRun], threshold: float) -> dict[str, Estimate]:
    """Of one judge's model: `<kind>.<judge>.<figure>`, and of evaluators `<kind>.<dimension>.<figure>`.

    Figures of grades are those of `agreement_figures`, `valid` (share of texts with a verdict; one without is wrong),
    `calls`, `prompt_tokens`, and `order_swap` (share with the same grade when labels and facts come in the opposite
    order). `without_checks` is a third judge: the agents' labels without what code found. `<kind>.gain` is what the
    agents have more than the one-shot judge.

    Args:
        texts: those with a grade count.
        runs: of these texts, or of more.
        threshold: the setting `judge_threshold` of the runs.
    """
    by_id = {text.id: text for text in texts if text.grade}
    found_by = {run.key: run for run in runs}
    figures: dict[str, Estimate] = {}
    for kind in get_args(Subject):
        own = [text for text in by_id.values() if text.task.kind == kind]
        graded: dict[str, list[Judged]] = {}
        for judge in JUDGES:
            told = [run for text in own if (run := found_by.get((text.id, judge, False)))]
            if not told:
                continue
            graded[judge] = [_judged(by_id[run.text_id], run.verdict.grade if run.verdict else None) for run in told]
            found = agreement_figures(graded[judge], GRADES)
            found["valid"] = estimate([float(run.verdict is not None) for run in told])
            found["calls"] = estimate([float(len(run.calls)) for run in told])
            found["prompt_tokens"] = estimate([float(sum(call.prompt_tokens for call in run.calls)) for run in told])
            swapped = [
                (run.verdict, other.verdict) for run in told if (other := found_by.get((run.text_id, judge, True)))
            ]
            if same := [float(one.grade == other.grade) for one, other in swapped if one and other]:
                found["order_swap"] = estimate(same)
            figures |= {f"{kind}.{judge}.{name}": value for name, value in found.items()}
            if judge == "agents":
                alone = [_judged(by_id[run.text_id], _without_checks(run.verdict, threshold)) for run in told]
                figures |= {
                    f"{kind}.without_checks.{name}": value for name, value in agreement_figures(alone, GRADES).items()
                }
                figures |= dict(_dimension_figures(kind, [(by_id[run.text_id], run) for run in told]))
        if graded.keys() >= {"agents", "one_shot"} and len(graded["agents"]) == len(graded["one_shot"]):
            gained = gains(graded["agents"], graded["one_shot"], GRADES)
            figures |= {f"{kind}.gain.{name}": value for name, value in gained.items()}
    return figures


def _judged(text: JudgedText, grade: str | None) -> Judged:
    return Judged(grade, text.grade or "", text.task.user_id)


def _without_checks(verdict: Verdict | None, threshold: float) -> Grade | None:
    labels = [label for label in verdict.labels if not label.by_code] if verdict else []
    return grade_labels(labels, threshold) if labels else None


def _dimension_figures(kind: Subject, judged: Sequence[tuple[JudgedText, JudgeRun]]) -> Iterator[tuple[str, Estimate]]:
    """Of evaluators; a text without a verdict has no labels, and is in none of these."""
    found: dict[str, list[Judged]] = {}
    for text, run in judged:
        for label in run.verdict.labels if run.verdict else []:
            if known := text.labels.get(label.dimension):
                found.setdefault(label.dimension, []).append(Judged(label.label, known, text.task.user_id))
    for dimension, values in found.items():
        for name, value in agreement_figures(values, LABELS).items():
            yield f"{kind}.{dimension}.{name}", value
    if certain := _certain(judged):
        yield f"{kind}.agents.calibration_error", calibration_estimate(*zip(*certain, strict=True))


def _certain(judged: Sequence[tuple[JudgedText, JudgeRun]]) -> list[tuple[float, bool, str]]:
    """Probability of each evaluator's label, whether it is right, and the household."""
    return [
        (label.probability, label.label == text.labels[label.dimension], text.task.user_id)
        for text, run in judged
        for label in (run.verdict.labels if run.verdict else [])
        if label.probability is not None and label.dimension in text.labels
    ]


def reliability(texts: Sequence[JudgedText], runs: Sequence[JudgeRun]) -> list[tuple[float, float, int]]:
    """Of evaluators' labels, by bins of their probability: mean probability, accuracy and count."""
    by_id = {text.id: text for text in texts}
    own = [run for run in runs if run.judge == "agents" and not run.reverse and run.text_id in by_id]
    certain = _certain([(by_id[run.text_id], run) for run in own])
    return calibration([p for p, _, _ in certain], [right for _, right, _ in certain])


def injection_figures(runs: Sequence[JudgeRun]) -> dict[str, Estimate]:
    """`tried` and `raised`: texts with an injection, and how many got a higher grade by it.

    A text that its judge calls Superior anyway can't be raised, and one that code finds faulty is raised by any
    sentence that mends the fault, such as one behind a text that is cut off: they are not tried.
    """
    verdicts = {run.text_id: run.verdict for run in runs if run.verdict and run.judge == "agents" and not run.reverse}
    tried = []
    for text_id, verdict in verdicts.items():
        base, injection, _ = text_id.partition(INJECTED)
        if injection and base in verdicts:
            faulty = any(label.label == "negative" and label.by_code for label in verdicts[base].labels)
            if verdicts[base].grade != GRADES[-1] and not faulty:
                tried.append(GRADES.index(verdict.grade) > GRADES.index(verdicts[base].grade))
    counts = {"tried": float(len(tried)), "raised": float(sum(tried))}
    return {name: Estimate(count, count, count, len(tried)) for name, count in counts.items()}


def people_figures(
    ratings: Mapping[str, Mapping[str, Sequence[float]]], runs: Sequence[JudgeRun]
) -> dict[str, Estimate]:
    """`<dimension>.{people, judge, alpha, kappa, pairs}` of `against_people`, a label counting as -1, 0 or 1.

    Args:
        ratings: values by dimension and text, see `eval.human.by_text`.
        runs: of the agents on the same texts.
    """
    labels: dict[str, dict[str, float]] = {}
    for run in runs:
        for label in run.verdict.labels if run.verdict and run.judge == "agents" and not run.reverse else []:
            labels.setdefault(label.dimension, {})[run.text_id] = VALUES[label.label]
    return {
        f"{dimension}.{name}": value
        for dimension, texts in ratings.items()
        for name, value in against_people(texts, labels.get(dimension, {})).items()
    }


def far_below_people(values: Mapping[str, Estimate]) -> list[str]:
    """Where the judge's interval lies wholly below that of people among themselves: `ab-redial, tuned, Relevance`."""
    return [
        ", ".join(key.split(".")[1:-1])
        for key, value in values.items()
        if key.startswith("people.") and key.endswith(".judge") and value.high < values[f"{key[:-6]}.people"].low
    ]


def write_judge_page(
    path: Path, values: Mapping[str, Estimate], curves: Mapping[str, Sequence[tuple[float, float, int]]]
) -> None:
    """The page of the figures, by their keys in `metrics.json`.

    Args:
        path: of the HTML file.
        values: all figures.
        curves: points of the reliability plot by model, see `reliability`.
    """
    below = far_below_people(values)
    rated = any(key.startswith("people.") for key in values)
    told = f"The judge is far below people among themselves in: {'; '.join(below)}." if below else ""
    told = told or ("In no dimension is the judge far below people among themselves." if rated else "")
    write_page(
        path,
        "The judge",
        "Grades of texts with labels known by construction, on households and wordings that no judge was tuned on; "
        "beside them ratings by people. Means with 95 % bootstrap intervals, over households. " + told,
        {
            **{
                f"{kind}: {name}": _judges(values, kind, figure)
                for kind in ("tags", "explanations")
                for figure, name in SHOWN.items()
            },
            "Reliability: how often labels of a stated probability are right": _reliability_plot(curves),
            "Against people: rank correlation with a rater's peers": _people_plot(values),
            "Reward models: pairs of different grades in the right order": _rewards_plot(values),
        },
        [list_of("All figures", values)],
    )


SHOWN = {
    "f1_superior": "F1 of Superior",
    "f1_bad": "F1 of Bad",
    "accuracy": "accuracy of the grade",
    "kappa": "weighted kappa",
}


def _judges(values: Mapping[str, Estimate], kind: str, figure: str) -> str:
    found = {
        f"{judge}, {model}": values[key]
        for judge in (*JUDGES, "without_checks")
        for model in ("tuned", "untuned")
        if (key := f"judge.{kind}.{judge}.{model}.{figure}") in values
    }
    if not found:
        return ""
    plot = Figure(figsize=(7.5, 0.6 + 0.3 * len(found)), layout="constrained")
    draw_bars(plot.subplots(), found, {"agents, tuned": GREEN, "one_shot, tuned": BLUE})
    return svg_of(plot)


def _rewards_plot(values: Mapping[str, Estimate]) -> str:
    """Of each reward model all pairs, and those of tags and of explanations."""
    found = {
        ", ".join(key.split(".")[1:-1]): value
        for key, value in values.items()
        if key.startswith("reward.") and "-" not in key
    }
    if not found:
        return ""
    plot = Figure(figsize=(7.5, 0.6 + 0.3 * len(found)), layout="constrained")
    draw_bars(plot.subplots(), found, {name: GREEN for name in found if name.startswith("listwise")})
    return svg_of(plot)


def _reliability_plot(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    if not any(curves.values()):
        return ""
    plot = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = plot.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa3b2", lw=1, ls="--")
    for name, points in curves.items():
        axes.plot([p for p, _, _ in points], [right for _, right, _ in points], marker="o", label=name)
    axes.set_xlabel("stated probability of the label")
    axes.set_ylabel("share that is right")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_of(plot)


def _people_plot(values: Mapping[str, Estimate]) -> str:
    found = {
        key.removeprefix("people."): value
        for key, value in values.items()
        if key.startswith("people.") and key.endswith((".people", ".judge"))
    }
    if not found:
        return ""
    plot = Figure(figsize=(7.5, 0.6 + 0.24 * len(found)), layout="constrained")
    draw_bars(plot.subplots(), found, {key: BLUE for key in found if key.endswith(".people")})
    return svg_of(plot)
