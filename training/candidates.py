"""Candidates of the real policy for the reward model (section 7): several samples a context, graded by the judge.

    recgpt judge sample --out runs/judge/policy

They join the constructed texts of the same households: the reward model must order what the policy really writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from agents.calls import gather_all, raise_if_gone
from agents.claims import find_claims, product_words
from agents.context import Context
from agents.judging import explanation_judge_task, tag_judge_tasks
from agents.schemas import ExplanationTask, ExplanationText, JudgeTask, Request
from eval.judged import JudgedText, Split, split_of
from graphs.explanation import graph as explanation_graph
from graphs.intent import graph as intent_graph
from graphs.judge import judge_text
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import NoVerdictError
from tools.history import number_lines, read_history
from tools.retrieval import open_index
from training.judged import Maker, context_name

SOURCE = "policy"


class Sampled(BaseModel):
    """What the policy wrote for one context: tags of a household at a moment, or explanations of one of its items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: str
    """As in the constructed texts."""
    user_id: str
    tasks: list[JudgeTask]


@dataclass(frozen=True)
class Draw:
    """A context to sample."""

    context: str
    user_id: str
    as_of: datetime
    task: ExplanationTask | None
    """Of explanations; None of tags."""


def draws_of(maker: Maker, households: Mapping[Split, int]) -> Iterator[Draw]:
    """The contexts of the constructed texts of so many households a split: tags, and explanations of one item."""
    for split, count in households.items():
        for user_id, as_of in maker.moments(split, count):
            yield Draw(context_name(user_id, as_of, None), user_id, as_of, None)
            if facts := maker.explained(user_id, as_of):
                yield Draw(context_name(user_id, as_of, facts.task.item.item_id), user_id, as_of, facts.task)


async def sample_texts(
    policy: Context,
    draws: Sequence[Draw],
    samples: int,
    seed: int,
    concurrency: int,
    write: Callable[[Sampled], None],
) -> None:
    """Sample each context, `concurrency` at a time; `write` gets what came of one when all of it is there.

    Args:
        policy: settings of the agents that write; answers that were kept are no samples, and are not used.
        draws: the contexts.
        samples: texts of each; fewer where the policy repeats itself.
        seed: of which of the experts' tags are taken.
        concurrency: contexts at a time.
        write: keeps the texts of a context.

    Raises:
        ServerUnreachableError: the server is gone; what is complete is written.
    """
    own = policy.model_copy(update={"answers": None, "seed": None})
    slots = asyncio.Semaphore(concurrency)

    async def sample(draw: Draw) -> None:
        async with slots:
            tasks = await (_explanations(own, draw.task, samples) if draw.task else _tags(own, draw, samples, seed))
        write(Sampled(context=draw.context, user_id=draw.user_id, tasks=tasks))

    await gather_all([sample(draw) for draw in draws])


async def _tags(policy: Context, draw: Draw, samples: int, seed: int) -> list[JudgeTask]:
    """Some of the experts' tags, judged by the whole history: the constructed ones are."""
    state = await intent_graph.ainvoke(Request(user_id=draw.user_id, as_of=draw.as_of), context=policy)
    raise_if_gone(state.get("failures", []))
    pool = list(dict.fromkeys(proposed.tag for proposed in state.get("pool", [])))
    chosen = [pool[place] for place in np.random.default_rng(seed).permutation(len(pool))[:samples]]
    dataset = open_dataset(policy.dataset)
    lines = await asyncio.to_thread(read_history, dataset, draw.user_id, draw.as_of)
    household = state["household"].model_copy(update={"history": number_lines(lines)})
    index = await asyncio.to_thread(open_index, dataset, open_embedder(policy.embedding_model))
    return await asyncio.to_thread(tag_judge_tasks, draw.user_id, draw.as_of, household, chosen, index)


async def _explanations(policy: Context, task: ExplanationTask, samples: int) -> list[JudgeTask]:
    """Texts of the explainer, also those that were rejected for their claims: the reward must tell them apart."""
    products = await asyncio.to_thread(product_words, open_dataset(policy.dataset))
    states = await asyncio.gather(*(explanation_graph.ainvoke(task, context=policy) for _ in range(samples)))
    texts: dict[str, None] = {}
    for state in states:
        raise_if_gone(state.get("failures", []))
        texts |= {item.explanation: None for item in state["explained"] if item.explanation_source == "model"}
        texts |= dict.fromkeys(
            text for one in state["rejected"] if one.agent == "explainer" and (text := _text_of(one.answer))
        )
    found = list(texts)[:samples]
    items = [task.item.model_copy(update={"claims": find_claims(text, task, products)}) for text in found]
    return [
        explanation_judge_task(task.model_copy(update={"item": item}), text)
        for item, text in zip(items, found, strict=True)
    ]


def _text_of(answer: str) -> str | None:
    """The text of a rejected answer; None where it is no whole answer."""
    try:
        return ExplanationText.model_validate_json(answer).text
    except ValidationError:
        return None


async def grade_samples(
    judge: Context,
    sampled: Sequence[Sampled],
    done: Container[str],
    concurrency: int,
    write: Callable[[JudgedText], None],
) -> None:
    """Have the judge grade samples; one without a verdict is left out: it never becomes a score.

    Args:
        judge: settings of the judge.
        sampled: texts by context.
        done: ids of texts that are graded already.
        concurrency: texts at a time.
        write: gets each graded text when it is there.

    Raises:
        ServerUnreachableError: the server is gone; what is graded is written.
    """
    slots = asyncio.Semaphore(concurrency)

    async def grade(text_id: str, one: Sampled, task: JudgeTask) -> None:
        async with slots:
            try:
                verdict = await judge_text(task, judge)
            except NoVerdictError:
                return
        write(
            JudgedText(
                id=text_id,
                split=split_of(one.user_id),
                source=SOURCE,
                context=one.context,
                task=task,
                labels={label.dimension: label.label for label in verdict.labels},
                evidence={label.dimension: label.evidence for label in verdict.labels},
                grade=verdict.grade,
            )
        )

    named = [
        (f"{task.kind}/{one.context}/{SOURCE}/{number}", one, task)
        for one in sampled
        for number, task in enumerate(one.tasks)
    ]
    await gather_all([grade(*entry) for entry in named if entry[0] not in done])
