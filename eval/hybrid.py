"""What hybrid prompts save and what they lose (section 2 of the report): the same households, the same run.

Five ways to show a history: `text`, as much of it as the model's window takes; `hybrid`; `cut`, text within hybrid's
budget of tokens; `leaf`, within the same budget with the leaf category of an item in the place of its title; and as a
control `blank`, hybrid with one and the same vector for all entities: what the rest of the system makes of prompts that
don't say what was bought.
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

from agents.calls import gather_all
from agents.context import Context
from agents.planner import NUMBERED_LINES, planner_values
from agents.schemas import Household
from eval.metrics import Estimate, estimate, hit_rate_at_k, relative
from eval.page import BLUE, GREEN, draw_bars, list_of, svg_of, write_page
from eval.splits import Case
from eval.tags import LIST, TagRun, ranked_leaves
from prompts.template import load_prompt
from tools.adaptor import Adaptor, TrainedAdaptor, save_adaptor
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.history import number_lines, read_days, read_history
from tools.hybrid import Example, HybridReader, Reading
from tools.llm import Endpoint, complete
from tools.signals import read_signals

ARMS = {"text": "text", "hybrid": "hybrid", "cut": "text", "leaf": "leaf", "blank": "hybrid"}
"""The representation of each way."""
BUDGETED = ("cut", "leaf")
"""Ways in which a household's prompt has the length of its hybrid one; the others take what the window holds."""
LENGTHS = {"1-6": 1, "7-9": 7, "10-12": 10, "13-15": 13, "16+": 16}
"""Bins of the lengths of entities, and where each begins."""
OF_ANY_LENGTH = ("department", "category", "leaf")
"""Tasks that every item has: a mean over others would compare tasks, not lengths."""
WIDTH = "_tokens"
"""How the adaptors of the curve end: `2_tokens` gives an entity two input embeddings."""
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
        signals=read_signals(dataset, case.user_id, case.as_of, context.weather),
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

    Raises:
        ServerError: the server is gone or refused a question; what is answered is written.
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

    keys = [(number, way) for number in range(len(questions)) for way in endpoints]
    await gather_all([ask(*key) for key in keys if key not in done])


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer, a JSON string, is the one that was asked for; case and blanks around it do not matter."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    return isinstance(found, str) and found.strip().casefold() == question.answer.strip().casefold()


def write_blank_adaptor(trained: TrainedAdaptor, embedder: Embedder, directory: Path) -> None:
    """Write the adaptor that gives every entity the vectors of the word `item`."""
    blank = Adaptor(trained.adaptor.shape)
    with torch.inference_mode():
        vectors = trained.adaptor(torch.from_numpy(embedder.embed(["item"])))
        blank.outer.weight.zero_()
        blank.outer.bias.copy_(vectors.flatten())
    save_adaptor(blank, directory, {"model": trained.model, "embedder": trained.embedder})


def hybrid_budgets(runs: Sequence[TagRun]) -> dict[str, int]:
    """Tokens of each household's hybrid prompt, which its text is cut to."""
    return {run.user_id: tokens for run in runs if (tokens := planner_prompt(run))}


def planner_prompt(run: TagRun) -> int:
    """Tokens of the planner's prompt; 0 where it was never asked."""
    return next((call.prompt_tokens for call in run.calls if call.agent == "planner" and call.attempt == 1), 0)


def hit_figures(arms: Mapping[str, Sequence[TagRun]], dataset: Dataset, embedder: Embedder) -> dict[str, Estimate]:
    """HR@30 of the tags alone: `hr@30.<all|new>.<arm>`, and what hybrid has beside another arm on shared households.

    That is `hr@30.<all|new>.hybrid-<arm>`, the difference, and `hr@30.<all|new>.hybrid/<arm>`, relative to the arm.
    """
    figures = {}
    rates: dict[tuple[str, bool], dict[str, float]] = {}
    for name, runs in arms.items():
        ranked = ranked_leaves(runs, dataset, embedder)
        for new in (False, True):
            found = {
                run.user_id: hit_rate_at_k(own, run.case, LIST, new) for own, run in zip(ranked, runs, strict=True)
            }
            rates[name, new] = {user: rate for user, rate in found.items() if rate is not None}
    for name in arms:
        for new, kind in ((False, "all"), (True, "new")):
            hybrid, other = rates.get(("hybrid", new), {}), rates[name, new]
            figures[f"hr@{LIST}.{kind}.{name}"] = estimate(list(other.values()))
            if name != "hybrid" and (shared := sorted(hybrid.keys() & other.keys())):
                pairs = [hybrid[user] for user in shared], [other[user] for user in shared]
                figures[f"hr@{LIST}.{kind}.hybrid-{name}"] = estimate([a - b for a, b in zip(*pairs, strict=True)])
                figures[f"hr@{LIST}.{kind}.hybrid/{name}"] = relative(*pairs)
    return figures


def whole_figures(arms: Mapping[str, Sequence[TagRun]], sizes: Mapping[str, PromptSizes]) -> dict[str, Estimate]:
    """`long_whole.<arm>`, `long_answered.<arm>`: households with `LONG` tokens or more of text.

    The share whose planner read the whole prompt, by its tokens, and the share whose tags came without a failure.
    """
    figures = {}
    for name in arms.keys() & {"text", "hybrid", "cut"}:
        if long := [run for run in arms[name] if run.user_id in sizes and sizes[run.user_id].text >= LONG]:
            whole = [sizes[run.user_id].hybrid if name == "hybrid" else sizes[run.user_id].text for run in long]
            read = [float(planner_prompt(run) >= tokens) for run, tokens in zip(long, whole, strict=True)]
            figures[f"long_whole.{name}"] = estimate(read)
            figures[f"long_answered.{name}"] = estimate([float(bool(run.tags) and not run.failures) for run in long])
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
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    answers = [Answer.model_validate_json(line) for line in lines if line]
    return {(answer.number, answer.way): answer.answer for answer in answers}


def perception_figures(
    questions: Sequence[Question], answers: Mapping[tuple[int, str], str], reading: Reading
) -> dict[str, Estimate]:
    """`self_perception.<task>.<way>`, and by the length of items' titles `self_perception.tokens_<n>.<way>`.

    Lengths are in tokens, in the bins `LENGTHS`, over the tasks `OF_ANY_LENGTH`. Beside multiple choice stands the way
    `commonest`: what the commonest right answer, given to every question, would reach. `lost.<task>` is the accuracy of
    the widest of the adaptors `<n>_tokens` less that of the narrowest.
    """
    right: dict[str, list[float]] = {}
    for (number, way), answer in sorted(answers.items()):
        question = questions[number]
        length = list(LENGTHS)[int(np.digitize(len(reading.title(question.entity)), list(LENGTHS.values())[1:]))]
        for what in (question.task, *([f"tokens_{length}"] if question.task in OF_ANY_LENGTH else [])):
            right.setdefault(f"self_perception.{what}.{way}", []).append(float(is_right(question, answer)))
    for task in {question.task for question in questions if question.choices}:
        wanted = [question.answer for question in questions if question.task == task]
        commonest = max(sorted(set(wanted)), key=wanted.count)
        right[f"self_perception.{task}.commonest"] = [float(answer == commonest) for answer in wanted]
    figures = {key: estimate(values) for key, values in right.items()}
    widths = sorted({way for _, way in answers if way.endswith(WIDTH)}, key=width_of)
    if len(widths) > 1:
        lost: dict[str, list[float]] = {}
        for number, question in enumerate(questions):
            narrow, wide = (answers.get((number, way)) for way in (widths[0], widths[-1]))
            if narrow is not None and wide is not None:
                gain = float(is_right(question, wide)) - float(is_right(question, narrow))
                lost.setdefault(f"lost.{question.task}", []).append(gain)
        figures |= {key: estimate(values) for key, values in lost.items()}
    return figures


def width_of(way: str) -> int:
    """Input embeddings an entity of the adaptor `<n>_tokens`."""
    return int(way.removesuffix(WIDTH))


def write_hybrid_page(path: Path, values: Mapping[str, Estimate]) -> None:
    """The page of the figures, by their keys in `metrics.json`."""
    tasks = _of(values, "hybrid.self_perception.")
    lengths = {f"{length} tokens": tasks.pop(f"tokens_{length}") for length in LENGTHS if f"tokens_{length}" in tasks}
    hits = _of(values, f"hybrid.hr@{LIST}.")
    lost = {key.removeprefix("hybrid.lost."): value for key, value in values.items() if key.startswith("hybrid.lost.")}
    lost = dict(sorted(lost.items(), key=lambda item: -item[1].mean))
    write_page(
        path,
        "Hybrid prompts",
        "Items and queries as one input embedding each, beside the same prompts as text. Means with 95 % bootstrap "
        "intervals. All ways answer the same questions; differences of hit rates are on the households that both have.",
        {
            "Self-perception by task: share of right answers on held-out items and queries": _paired_plot(tasks),
            "Self-perception by the length of the item's title": _paired_plot(lengths),
            "Self-perception by the number of input embeddings an entity": _curves(tasks),
            "What is lost first: accuracy of the widest adaptor less that of the narrowest": _bars(lost),
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
    for (name, own), axes in zip(groups.items(), panels, strict=False):  # in this order no panel is lost at the end
        draw_bars(axes, own, {"hybrid": GREEN, "text": BLUE})
        axes.set_title(name, fontsize=9)
    for axes in list(panels):
        axes.set_visible(False)
    return svg_of(figure)


def _curves(tasks: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Accuracy against the adaptor's width, a line a task of items of known leaves."""
    widths = sorted({way for own in tasks.values() for way in own if way.endswith(WIDTH)}, key=width_of)
    if len(widths) < 2:
        return ""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for task, own in tasks.items():
        if "_of_" not in task:
            axes.plot([width_of(way) for way in widths], [own[way].mean for way in widths], marker="o", label=task)
    axes.set_xticks([width_of(way) for way in widths])
    axes.set_xlabel("input embeddings an entity")
    axes.set_ylabel("right answers")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return svg_of(figure)


def _bars(found: Mapping[str, Estimate]) -> str:
    if not found:
        return ""
    figure = Figure(figsize=(7.5, 0.6 + 0.24 * len(found)), layout="constrained")
    draw_bars(figure.subplots(), found)
    return svg_of(figure)
