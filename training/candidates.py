"""Candidates of the real policy for the reward model (section 7): several samples a context, graded by the judge.

    recgpt judge sample --out runs/judge/policy.jsonl

They join the constructed texts of the same households: the reward model must order what the policy really writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from agents.claims import find_claims, product_words
from agents.context import Context
from agents.judging import explanation_judge_task, tag_judge_tasks
from agents.schemas import ExplanationTask, JudgeTask, Request, Verdict
from eval.judged import JudgedText, Split
from graphs.explanation import graph as explanation_graph
from graphs.intent import graph as intent_graph
from graphs.judge import judge_text
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import NoVerdictError
from tools.retrieval import open_index
from training.judged import Maker, context_name, split_of

SOURCE = "policy"


@dataclass(frozen=True)
class Draw:
    """What is sampled: the tags of a household at a moment, or explanations of one of its items."""

    context: str
    """As in the constructed texts."""
    user_id: str
    as_of: datetime
    task: ExplanationTask | None
    """Of explanations."""


def draws_of(maker: Maker, households: Mapping[Split, int]) -> Iterator[Draw]:
    """The contexts of the constructed texts of so many households a split: tags, and explanations of one item."""
    for split, count in households.items():
        for user_id, as_of in maker.moments(split, count):
            yield Draw(context_name(user_id, as_of, None), user_id, as_of, None)
            if facts := maker.explained(user_id, as_of):
                yield Draw(context_name(user_id, as_of, facts.task.item.item_id), user_id, as_of, facts.task)


async def sample_all(
    policy: Context,
    draws: Sequence[Draw],
    samples: int,
    seed: int,
    concurrency: int,
    keep: Callable[[Draw, list[JudgeTask]], None],
) -> None:
    """Sample each context, `concurrency` at a time; `keep` gets what came."""
    slots = asyncio.Semaphore(concurrency)

    async def sample(draw: Draw) -> None:
        async with slots:
            keep(draw, await sample_texts(policy, draw, samples, seed))

    await asyncio.gather(*map(sample, draws))


async def sample_texts(policy: Context, draw: Draw, samples: int, seed: int) -> list[JudgeTask]:
    """So many different texts that the policy writes for a context, each with what it is judged by.

    Args:
        policy: settings of the agents that write.
        draw: the context.
        samples: how many; fewer where the policy repeats itself or fails.
        seed: of which of the experts' tags are taken.
    """
    dataset = open_dataset(policy.dataset)
    if draw.task is None:
        state = await intent_graph.ainvoke(Request(user_id=draw.user_id, as_of=draw.as_of), context=policy)
        pool = list(dict.fromkeys(proposed.tag for proposed in state.get("pool", [])))
        chosen = [pool[place] for place in np.random.default_rng(seed).permutation(len(pool))[:samples]]
        index = await asyncio.to_thread(open_index, dataset, open_embedder(policy.embedding_model))
        return await asyncio.to_thread(tag_judge_tasks, draw.user_id, draw.as_of, state["household"], chosen, index)
    task = draw.task
    products = await asyncio.to_thread(product_words, dataset)
    states = await asyncio.gather(*(explanation_graph.ainvoke(task, context=policy) for _ in range(samples)))
    texts = dict.fromkeys(item.explanation for state in states for item in state.get("explained", []))
    return [
        explanation_judge_task(
            task.model_copy(
                update={"item": task.item.model_copy(update={"claims": find_claims(text, task, products)})}
            ),
            text,
        )
        for text in texts
        if text
    ]


def graded(draw: Draw, number: int, task: JudgeTask, verdict: Verdict) -> JudgedText:
    """A sampled text with the judge's labels and grade."""
    return JudgedText(
        id=f"{task.kind}/{draw.context}/{SOURCE}/{number}",
        split=split_of(draw.user_id),
        source=SOURCE,
        context=draw.context,
        task=task,
        labels={label.dimension: label.label for label in verdict.labels},
        evidence={label.dimension: label.evidence for label in verdict.labels},
        grade=verdict.grade,
    )


async def grade_samples(
    judge: Context,
    sampled: Sequence[tuple[Draw, Sequence[JudgeTask]]],
    concurrency: int,
    write: Callable[[JudgedText], None],
) -> None:
    """Have the judge grade samples; one without a verdict is left out: it never becomes a score.

    Args:
        judge: settings of the judge.
        sampled: texts by context.
        concurrency: texts at a time.
        write: gets each graded text when it is there.
    """
    slots = asyncio.Semaphore(concurrency)

    async def grade(draw: Draw, number: int, task: JudgeTask) -> None:
        async with slots:
            try:
                verdict = await judge_text(task, judge)
            except NoVerdictError:
                return
        write(graded(draw, number, task, verdict))

    await asyncio.gather(*(grade(draw, n, task) for draw, tasks in sampled for n, task in enumerate(tasks)))
