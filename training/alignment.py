"""Production alignment (section 2 of the report): what the frozen model answers to the full-text prompts of its agents.

    recgpt train alignment --users 200 --out runs/train/alignment.jsonl

A case is a household before one of its training baskets. The graph `intent` runs on text, and the first answers of
planner and arbiter are kept beside the fields of their prompts, from which the hybrid prompts are rendered.
"""

from __future__ import annotations

import asyncio
import lzma
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from pydantic import BaseModel, ConfigDict, ValidationError

from agents.arbiter import arbiter_values, pool_in_turn
from agents.calls import gather_all
from agents.context import HYBRID_AGENTS, Context
from agents.planner import planner_values
from agents.schemas import Request
from eval.splits import SEED
from graphs.intent import graph
from prompts.template import Value
from tools.dataset import BASKET, Dataset
from tools.errors import DatasetError, RecGPTError
from tools.models import weights_name
from training.examples import LEAST_LINES
from training.view import training_view


class Alignment(BaseModel):
    """One prompt by its fields, and the frozen model's answer to its text."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """What answered, with the digest of its weights where that is known."""
    user_id: str
    as_of: datetime
    agent: str
    version: str
    """Of the prompt file."""
    values: dict[str, Any]
    answer: str


def alignment_cases(dataset: Dataset, users: int, seed: int = SEED) -> list[Request]:
    """A seeded draw of households, each before its last training basket with enough purchases before it."""
    events = training_view(dataset).events_before(datetime.max).with_columns(BASKET)
    baskets = (
        events.group_by("user_id", "basket")
        .agg(start=pl.col("timestamp").min(), items=pl.col("item_id").n_unique())
        .sort("user_id", "start")
        .with_columns(before=pl.col("items").cum_sum().over("user_id") - pl.col("items"))
        .filter(pl.col("before") >= LEAST_LINES)
        .group_by("user_id", maintain_order=True)
        .last()
    )
    order = np.random.default_rng(seed).permutation(len(baskets))[:users]
    rows = baskets[order.tolist()].select("user_id", "start").iter_rows()
    return [Request(user_id=user, as_of=start) for user, start in rows]


async def align(
    context: Context,
    cases: Sequence[Request],
    concurrency: int,
    write: Callable[[Sequence[Alignment]], None],
) -> None:
    """Run the graph on text for each case; `write` gets the lines of one household at a time.

    Raises:
        RecGPTError: the server is gone; what is finished is written.
    """
    slots = asyncio.Semaphore(concurrency)

    async def run(case: Request) -> None:
        async with slots:
            answers = _FirstAnswers()
            state = await graph.ainvoke(case, context=context, config={"callbacks": [answers]})
        for failure in state.get("failures", []):
            if failure.kind == "server_unreachable":
                raise RecGPTError(f"{failure.reason}. Finished households are kept: run the same again")
        values = _prompt_values(state, context)
        write(
            [
                Alignment(
                    model=weights_name(context.endpoint(agent).model),
                    user_id=case.user_id,
                    as_of=case.as_of,
                    agent=agent,
                    version=getattr(context, f"{agent}_prompt"),
                    values=values[agent],
                    answer=answers.texts[agent],
                )
                for agent in HYBRID_AGENTS
                if agent in answers.texts
            ]
        )

    await gather_all([run(case) for case in cases])


def read_alignments(path: Path, model: str) -> list[Alignment]:
    """The lines of a file, which may be compressed (`.xz`), as what the shipped adaptor was aligned on is.

    Args:
        path: JSON lines.
        model: what must have answered, see `tools.models.weights_name`.

    Raises:
        DatasetError: there is no such file, or a line is none of `recgpt train alignment`, or another model's.
    """
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            found = [Alignment.model_validate_json(line) for line in lines]
    except (OSError, EOFError, lzma.LZMAError, ValidationError) as error:
        raise DatasetError(f"{path} has no lines of `recgpt train alignment`: {error}") from error
    if others := sorted({line.model for line in found} - {model}):
        raise DatasetError(f"{path} has answers of {', '.join(others)}, not of {model}: give another file")
    return found


def _prompt_values(state: dict[str, Any], context: Context) -> dict[str, dict[str, Value]]:
    """The fields of the two prompts of a finished run."""
    household, personas = state["household"], state["personas"]
    pool = pool_in_turn(personas, state.get("pool", []))
    return {
        "planner": planner_values(state["as_of"], household, context.personas),
        "arbiter": arbiter_values(state["as_of"], household, personas, pool, min(context.final_tags, len(pool))),
    }


class _FirstAnswers(AsyncCallbackHandler):
    """The text of each agent's first answer; none where that was cut off."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._asked: set[str] = set()
        self._agents: dict[UUID, str] = {}

    async def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 (as in the class it extends)
    ) -> None:
        self._agents[run_id] = (metadata or {})["agent"]

    async def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ANN401
        agent, (answer,) = self._agents[run_id], response.generations[0]
        assert isinstance(answer, ChatGeneration)
        if agent not in self._asked and answer.message.response_metadata.get("finish_reason") != "length":
            self.texts[agent] = answer.text
        self._asked.add(agent)
