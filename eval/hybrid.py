"""What hybrid prompts save and what they lose (section 2 of the report): the same households, the same run.

Four ways to show a history: `text`, as much of it as the model's window takes; `hybrid`; `cut`, text within hybrid's
budget of tokens; `leaf`, within the same budget with the leaf category of an item in the place of its title.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from langchain_core.messages import BaseMessage
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor

from agents.context import Context
from agents.planner import NUMBERED_LINES, planner_values
from agents.schemas import Household
from eval.metrics import Estimate, estimate, hit_rate_at_k
from eval.page import BLUE, GREEN, draw_bars, list_of, svg_of, write_page
from eval.splits import Case
from eval.tags import LIST, TagRun, ranked_leaves
from prompts.template import load_prompt
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.history import number_lines, read_days, read_history
from tools.hybrid import Example, HybridReader, Reading
from tools.llm import Endpoint, complete
from tools.signals import read_signals

ARMS: dict[str, dict[str, object]] = {
    "text": {"representation": "text", "planner_tokens": 1_000_000},
    "hybrid": {"representation": "hybrid"},
    "cut": {"representation": "text"},
    "leaf": {"representation": "leaf"},
}
"""The settings of each way, beside those of the run."""
LENGTHS = {"1-6": 1, "7-9": 7, "10-12": 10, "13-15": 13, "16+": 16}
"""Bins of the lengths of entities, and where each begins."""
ANSWER_TOKENS = 64
"""Bound of an answer to a question of self-perception."""
LONG = 20_000
"""Tokens of a prompt's text from which a history is long."""


class Answer(BaseModel):
    """An answer of one endpoint to one question."""

    number: int
    way: str
    answer: str


@dataclass(frozen=True)
class PromptSizes:
    """Tokens of one household's planner prompt, nothing of its history left out."""

    text: int
    hybrid: int
    entities: int
    """How many stand in it."""
    entity_tokens: int
    """Of their text."""


@dataclass(frozen=True)
class Question:
    """A self-perception question in both representations."""

    task: str
    entity: str
    text: Sequence[BaseMessage]
    hybrid: Sequence[BaseMessage]
    answer: str
    choices: tuple[str, ...]
    """What it may be answered with; empty for any text."""


def whole_prompts(dataset: Dataset, context: Context, case: Case) -> dict[bool, list[BaseMessage]]:
    """The planner's prompt with the whole history, as text (False) and hybrid (True)."""
    history = read_history(dataset, case.user_id, case.as_of)
    days = read_days(dataset, case.user_id, case.as_of) if len(history) > NUMBERED_LINES else []
    household = Household(
        profile=dataset.user(case.user_id)[0],
        history=number_lines(history[:NUMBERED_LINES]),
        days=days,
        signals=read_signals(dataset, case.user_id, case.as_of),
    )
    prompt = load_prompt("planner", context.planner_prompt)
    values = planner_values(case.as_of, household, context.personas)
    return {hybrid: prompt.render(values, hybrid) for hybrid in (False, True)}


def prompt_sizes(prompts: Mapping[bool, Sequence[BaseMessage]], reading: Reading) -> PromptSizes:
    """How long a prompt is in both representations."""
    text, hybrid = (reading.example(prompts[way], "") for way in (False, True))
    tokens = sum(len(reading.title(entity)) for entity in hybrid.entities)
    return PromptSizes(text.answer, hybrid.answer, len(hybrid.entities), tokens)


def size_figures(sizes: Sequence[PromptSizes], tokens: int) -> dict[str, Estimate]:
    """`entity_compression`, `prompt_reduction.<median|long>`.

    The first is the mean over households of the tokens of their entities' texts for one input embedding; the second
    the share of a prompt's tokens that hybrid saves, of the tenth of the households around the median length, and of
    those with `LONG` tokens or more.

    Args:
        sizes: of each household.
        tokens: input embeddings an entity.
    """
    with_entities = [size for size in sizes if size.entities]
    ordered = sorted(sizes, key=lambda size: size.text)
    middle = ordered[int(0.45 * len(ordered)) : int(0.55 * len(ordered)) + 1]
    long = [size for size in sizes if size.text >= LONG]

    def reduction(some: Sequence[PromptSizes]) -> Estimate:
        return estimate([1 - size.hybrid / size.text for size in some])

    return {
        "entity_compression": estimate([size.entity_tokens / (size.entities * tokens) for size in with_entities]),
        "prompt_reduction.median": reduction(middle),
        **({"prompt_reduction.long": reduction(long)} if long else {}),
    }


async def perceive(
    endpoints: Mapping[str, Endpoint],
    questions: Sequence[Question],
    done: Container[tuple[int, str]],
    concurrency: int,
    write: Callable[[Answer], None],
) -> None:
    """Ask each question of each endpoint, hybrid where it has entities; `write` gets each answer when it is there.

    Args:
        endpoints: by name: `text`, `hybrid`, and adaptors of other widths.
        questions: what to ask.
        done: numbers of questions and names of endpoints that were asked before.
        concurrency: questions at a time.
        write: keeps an answer.
    """
    slots = asyncio.Semaphore(concurrency)

    async def ask(number: int, way: str) -> None:
        question, endpoint = questions[number], endpoints[way]
        schema: dict[str, object] = {"type": "string"}
        if question.choices:
            schema["enum"] = list(question.choices)
        async with slots:
            answer = await complete(
                endpoint,
                question.hybrid if endpoint.entities else question.text,
                schema,
                temperature=0.0,
                max_tokens=ANSWER_TOKENS,
                seed=None,
                run_name="perception",
                metadata={"task": question.task},
            )
        write(Answer(number=number, way=way, answer=answer.text))

    async with asyncio.TaskGroup() as group:
        for number in range(len(questions)):
            for way in endpoints:
                if (number, way) not in done:
                    group.create_task(ask(number, way))


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer, a JSON string, is the one that was asked for; case and blanks around it do not matter."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    return isinstance(found, str) and found.strip().casefold() == question.answer.strip().casefold()


def hit_figures(arms: Mapping[str, Sequence[TagRun]], dataset: Dataset, embedder: Embedder) -> dict[str, Estimate]:
    """`hr@30.<all|new>.<arm>` of the tags alone, and `hr@30.<all|new>.hybrid-<arm>`, household by household."""
    figures = {}
    shared = set.intersection(*({(run.user_id, run.as_of) for run in runs} for runs in arms.values()))
    rates: dict[tuple[str, bool], list[float | None]] = {}
    for name, runs in arms.items():
        own = sorted((run for run in runs if (run.user_id, run.as_of) in shared), key=lambda run: run.user_id)
        ranked = ranked_leaves(own, dataset, embedder)
        for new in (False, True):
            rates[name, new] = [
                hit_rate_at_k(leaves, run.case, LIST, new) for leaves, run in zip(ranked, own, strict=True)
            ]
    for name in arms:
        for new, kind in ((False, "all"), (True, "new")):
            values = [rate for rate in rates[name, new] if rate is not None]
            figures[f"hr@{LIST}.{kind}.{name}"] = estimate(values)
            if name != "hybrid":
                pairs = zip(rates["hybrid", new], rates[name, new], strict=True)
                gains = [own - other for own, other in pairs if own is not None and other is not None]
                figures[f"hr@{LIST}.{kind}.hybrid-{name}"] = estimate(gains)
    return figures


def agreement(
    reader: HybridReader, text: Example, hybrid: Example, vectors: Callable[[Sequence[str]], Tensor]
) -> tuple[float, float]:
    """How alike the frozen model goes on after both prompts, given the answer that it wrote to the text.

    Returns:
        The share of the answer's tokens that are the likeliest in both, and the mean KL divergence of hybrid's
        distribution from text's in nats.
    """
    with torch.inference_mode():
        of_text, of_hybrid = (
            reader.log_probabilities(example, vectors(example.entities)) for example in (text, hybrid)
        )
    same = (of_text.argmax(dim=1) == of_hybrid.argmax(dim=1)).float().mean()
    divergence = (of_text.exp() * (of_text - of_hybrid)).sum(dim=1).mean()
    return float(same), float(divergence)


def read_answers(path: Path) -> dict[tuple[int, str], str]:
    """What `perceive` wrote, by number and endpoint; nothing where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    answers = [Answer.model_validate_json(line) for line in lines]
    return {(answer.number, answer.way): answer.answer for answer in answers}


def perception_figures(
    questions: Sequence[Question], answers: Mapping[tuple[int, str], str], reading: Reading
) -> dict[str, Estimate]:
    """`self_perception.<task>.<way>`, and by the length of entities `self_perception.tokens_<n>.<way>`, over all tasks.

    Lengths are those of the entity's text in tokens, in the bins `LENGTHS`.
    """
    right: dict[str, list[float]] = {}
    for (number, way), answer in sorted(answers.items()):
        question = questions[number]
        length = list(LENGTHS)[int(np.digitize(len(reading.title(question.entity)), list(LENGTHS.values())[1:]))]
        for what in (question.task, f"tokens_{length}"):
            right.setdefault(f"self_perception.{what}.{way}", []).append(float(is_right(question, answer)))
    return {key: estimate(values) for key, values in right.items()}


def write_hybrid_page(path: Path, values: Mapping[str, Estimate]) -> None:
    """The page of the figures, by their keys in `metrics.json`."""
    tasks = _of(values, "hybrid.self_perception.")
    answered = {task: own for task, own in tasks.items() if not task.startswith("tokens_")}
    lengths = {f"{length} tokens": tasks[f"tokens_{length}"] for length in LENGTHS if f"tokens_{length}" in tasks}
    hits = _of(values, f"hybrid.hr@{LIST}.")
    write_page(
        path,
        "Hybrid prompts",
        "Items and queries as one input embedding each, beside the same prompts as text. Means with 95 % bootstrap "
        "intervals; the same households and questions for all.",
        {
            "Self-perception by task: share of right answers on held-out items": _paired_plot(answered),
            "Self-perception by the length of the item's title": _paired_plot(lengths),
            f"HR@{LIST} of the tags alone, leaf categories": _paired_plot(
                {kind: {way: own[way] for way in ARMS if way in own} for kind, own in hits.items()}
            ),
            "Requests a second until the first token, by users at a time": _paired_plot(_by_users(values)),
        },
        [list_of("All figures", values)],
    )


def _of(values: Mapping[str, Estimate], prefix: str) -> dict[str, dict[str, Estimate]]:
    """Figures below a prefix, `<what>.<way>`, by what and way."""
    found: dict[str, dict[str, Estimate]] = {}
    for key, value in values.items():
        if key.startswith(prefix) and "." in key.removeprefix(prefix):
            what, way = key.removeprefix(prefix).rsplit(".", 1)
            found.setdefault(what, {})[way] = value
    return found


def _by_users(values: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for way, own in _of(values, "hybrid.prefill_rps.").items():
        for users, value in own.items():
            found.setdefault(f"{users} users", {})[way] = value
    return found


def _paired_plot(groups: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A panel a group, a bar a way."""
    if not groups:
        return ""
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    most = max(len(own) for own in groups.values())
    figure = Figure(figsize=(9.5, rows * (0.8 + 0.28 * most)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, (name, own) in zip(panels, groups.items(), strict=False):
        draw_bars(axes, own, {"hybrid": GREEN, "text": BLUE})
        axes.set_title(name, fontsize=9)
    for axes in list(panels):
        axes.set_visible(False)
    return svg_of(figure)
