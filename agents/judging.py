"""What the judge gets to see of a text: the facts behind it, and both as lines with ids that evidence is quoted by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from langchain_core.messages import BaseMessage
from numpy.typing import NDArray

from agents.schemas import Claim, Doubt, EvaluationTask, ExplanationTask, Fact, Household, JudgeTask
from agents.wording import moment_text, own_text, profile_text, shelf_text
from prompts.rubric import Rubric
from prompts.template import load_prompt
from tools.dataset import Dataset
from tools.history import HistoryLine, number_lines, read_history
from tools.retrieval import CatalogIndex
from tools.signals import read_signals

NEAR_LINES = 4
"""History lines that a tag is judged by: those whose leaf category is nearest to it."""
NEAR_LEAVES = 3
"""Leaf categories of the catalogue that stand beside a tag."""
REWARD_PROMPT = "v1"
"""What the reward model was trained on: its scores hold for this version alone."""

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[JSDM]r\.)(?<!\bSt\.)\s+", re.IGNORECASE)
"""Martin Luther King Jr. Day and St. Patrick's are one sentence's."""


def whole_household(dataset: Dataset, user_id: str, as_of: datetime) -> Household:
    """A household as its tags are judged: with its whole history, and the signals that the data set tells.

    Args:
        dataset: only events before `as_of` are read.
        user_id: the household.
        as_of: the moment.
    """
    return Household(
        profile=dataset.user(user_id)[0],
        history=number_lines(read_history(dataset, user_id, as_of)),
        signals=read_signals(dataset, user_id, as_of),
    )


def explanation_judge_task(task: ExplanationTask, text: str) -> JudgeTask:
    """The explanation of one item with every fact that a rubric may ask for.

    Args:
        task: what it was written from.
        text: the explanation.
    """
    facts = [
        Fact(name="moment", text=moment_text(task.as_of)),
        Fact(name="profile", text=profile_text(task.profile)),
        Fact(name="item", text=task.item.title),
        Fact(name="shelf", text=shelf_text(task.item.category)),
        Fact(name="history", text=f"the item itself: {own_text(task.own, task.as_of)}"),
        *(Fact(name="history", text=f"{line.text} ({line.rhythm(task.as_of)})") for line in task.evidence),
        *(Fact(name="signals", text=signal.text) for signal in task.signals),
    ]
    if task.persona:
        facts.append(Fact(name="persona", text=f"{task.persona.name}: {task.persona.intent}"))
    return JudgeTask(
        user_id=task.user_id,
        kind="explanations",
        subject_id=task.item.item_id,
        subject=text,
        facts=facts,
        claims=task.item.claims,
    )


def tag_judge_tasks(
    user_id: str, as_of: datetime, household: Household, tags: Sequence[str], index: CatalogIndex
) -> list[JudgeTask]:
    """Tags of one household, each with the facts that it is judged by: what is nearest to it.

    These are the nearest leaf categories, the history lines of the nearest leaves, and the signals about the nearest
    leaves or about none in particular. Blocks: call it in a thread from async code.

    Args:
        user_id: whose tags they are.
        as_of: the moment they are for.
        household: what was known of the household at that moment.
        tags: the texts to judge.
        index: of the catalogue.
    """
    number = {path[-1]: number for number, path in enumerate(index.leaves)}
    of_lines = [number.get(line.leaf or "", len(number)) for line in household.history]
    return [
        JudgeTask(
            user_id=user_id,
            kind="tags",
            subject_id=tag,
            subject=tag,
            facts=_tag_facts(as_of, household, of_lines, index.leaves, nearest),
        )
        for tag, nearest in zip(tags, index.rank_leaves(tags)[1], strict=True)
    ]


def _tag_facts(
    as_of: datetime,
    household: Household,
    of_lines: Sequence[int],
    leaves: Sequence[list[str]],
    nearest: NDArray[np.int64],
) -> list[Fact]:
    """What is known beside a tag.

    Args:
        as_of: the moment the tag is for.
        household: what was known of it.
        of_lines: the leaf of each line of its history, by number; n for a line that has none.
        leaves: paths of all n.
        nearest: their numbers, that of the leaf nearest to the tag first, (n,).
    """
    rank = [*np.argsort(nearest).tolist(), len(nearest)]
    lines = sorted(zip(of_lines, household.history, strict=True), key=lambda own: (rank[own[0]], -own[1].weight))
    shelves = [leaves[number] for number in nearest[:NEAR_LEAVES]]
    near = {path[-1] for path in shelves}
    signals = [signal for signal in household.signals if not signal.categories or near.intersection(signal.categories)]
    return [
        Fact(name="moment", text=moment_text(as_of)),
        Fact(name="profile", text=profile_text(household.profile)),
        *(Fact(name="shelf", text=shelf_text(path)) for path in shelves),
        *(Fact(name="history", text=history_fact(line, as_of)) for _, line in lines[:NEAR_LINES]),
        *(Fact(name="signals", text=signal.text) for signal in signals),
    ]


def reward_messages(tasks: Sequence[JudgeTask]) -> list[list[BaseMessage]]:
    """Candidates of one context as the reward model reads them (section 7), in their order.

    The facts of each are those that any of them is judged by: all but the candidate itself is the same text.
    """
    facts: dict[tuple[str, str], Fact] = {}
    for task in tasks:
        facts |= {(fact.name, fact.text): fact for fact in task.facts}
    shown = [fact.model_dump() for _, fact in sorted(facts.items())]
    prompt = load_prompt("reward", REWARD_PROMPT)
    return [prompt.render({"kind": task.kind, "facts": shown, "subject": task.subject}) for task in tasks]


def history_fact(line: HistoryLine, as_of: datetime) -> str:
    """A line of the history with where it stands: `Shredded Cheese, 8 oz (Cheese; bought 16x, every 19 days, ...)`."""
    shelf = f"{line.category[-2]}; " if len(line.category) > 1 else ""
    return f"{line.text} ({shelf}{line.rhythm(as_of)})"


def fact_lines(facts: Sequence[Fact]) -> list[Mapping[str, Any]]:
    """Facts as entries of a list field: `f1`, `f2` ... with what each is of."""
    return [{"id": f"f{number}", "name": fact.name, "text": fact.text} for number, fact in enumerate(facts, 1)]


def subject_lines(subject: str) -> list[Mapping[str, Any]]:
    """The text to judge as entries of a list field, a sentence each: `t1`, `t2` ..."""
    sentences = _SENTENCE_END.split(subject.strip())
    return [{"id": f"t{number}", "text": sentence} for number, sentence in enumerate(sentences, 1)]


def evaluation_task(task: JudgeTask, rubric: Rubric, doubt: Doubt | None = None) -> EvaluationTask:
    """What the evaluator of one dimension gets: of facts and text what its rubric lets it see."""
    sentences = [str(line["text"]) for line in subject_lines(task.subject)]
    claiming = [text for text in sentences if any(_says(text, claim) for claim in task.claims or [])]
    return EvaluationTask(
        user_id=task.user_id,
        kind=task.kind,
        subject_id=task.subject_id,
        subject=" ".join(claiming) if rubric.claims_only and claiming else task.subject,
        facts=[fact for fact in task.facts if fact.name in rubric.facts],
        claims=task.claims,
        rubric=rubric,
        doubt=doubt,
    )


def _says(text: str, claim: Claim) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(claim.text)}(?!\w)", text))


def quotes(facts: Sequence[Fact], subject: str) -> dict[str, str]:
    """The words behind each id that evidence may name."""
    return {line["id"]: line["text"] for line in [*fact_lines(facts), *subject_lines(subject)]}
