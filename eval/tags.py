"""What the agents' tags alone are worth: the intent graph on held-out baskets, beside popularity and the shelf.

A line of the output is a household: what was asked, what each agent wrote, and what was bought. Lines of several
runs (tuned, untuned, without a shelf ...) on the same households are compared by `compare_arms`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from langgraph.graph.state import CompiledStateGraph
from pydantic import BaseModel, ConfigDict

from agents.arbiter import in_turn
from agents.calls import gather_all
from agents.context import Context
from agents.route import ROUTE_PROMPT
from agents.schemas import CallRecord, Failure, Persona, ProposedTag, Request, Tag
from agents.state import IntentState
from eval.metrics import Estimate, estimate, hit_rate_at_k
from eval.splits import Case
from graphs.intent import graph
from prompts.template import load_prompt
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.entities import open_entities
from tools.errors import OutputError, ServerUnreachableError
from tools.models import sha256, weights_name
from tools.ranker import WEIGHTS as RANKER_WEIGHTS
from tools.retrieval import open_index, popular_leaves
from tools.shelf import ShelfLine, tag_text
from tools.towers import WEIGHTS as TOWER_WEIGHTS

NOT_OF_TAGS = (
    *("base_url", "answers", "api_key", "request_timeout"),
    *("style_", "explainer_", "evaluator_", "reviewer_", "judge"),
    *("towers", "ranker", "exploration", "conversion_floor", "items"),
    "adaptor",  # the digest of its vectors is kept
)
"""What settings begin with that say where something is, or how tags become items and texts; of towers and
ranker, which fill the shelves too, the digests are kept."""
LIST = 30
"""Leaves that count: HR@30."""

Figures = dict[str, Estimate]


class TagRun(BaseModel):
    """One household's run, and what it bought."""

    model_config = ConfigDict(extra="forbid")

    user_id: str
    as_of: datetime
    settings: dict[str, Any]
    """See `settings_of`."""
    target: list[str]
    bought: list[str]
    history: list[str]
    """Leaves of the history lines that the planner read."""
    planner_tokens: int | None = None
    """The budget of this household's planner where it had one of its own, see `run_cases`."""
    personas: list[Persona]
    shelves: list[list[ShelfLine]]
    pool: list[ProposedTag]
    tags: list[Tag]
    calls: list[CallRecord]
    failures: list[Failure]

    @property
    def case(self) -> Case:
        """The household and its basket."""
        return Case(self.user_id, self.as_of, frozenset(self.target), frozenset(self.bought))


def settings_of(context: Context) -> dict[str, Any]:
    """What tags depend on: an arm is made with one and the same. Blocks.

    The settings, and digests of what they name: weights of the models, prompt files, and the vectors of entities.
    """
    settings = context.model_dump(mode="json")
    versions = {"planner": context.planner_prompt, "expert": context.expert_prompt, "arbiter": context.arbiter_prompt}
    prompts = [load_prompt(*prompt) for prompt in (*versions.items(), ("route", ROUTE_PROMPT))]
    files = [prompt.model_dump_json(exclude={"value_limit"}) for prompt in prompts]
    entities = context.endpoint("planner").entities
    towers = context.towers / TOWER_WEIGHTS
    return {
        **{key: value for key, value in settings.items() if not key.startswith(NOT_OF_TAGS)},
        "planner_tokens": context.planner_budget,
        "weights": {agent: weights_name(context.endpoint(agent).model) for agent in versions},
        "prompts": hashlib.sha256("".join(files).encode()).hexdigest()[:16],
        "entities": open_entities(entities).version.digest if entities else None,
        "ranker": sha256(context.ranker / RANKER_WEIGHTS)[:16] if context.shelf else None,
        "towers": sha256(towers)[:16] if context.shelf and towers.is_file() else None,  # shelves do without, too
    }


Tagger = CompiledStateGraph[IntentState, Context, Request, Any]
"""What makes tags of a request: the graph `intent`, or the baseline's `routes`."""


async def run_cases(
    context: Context,
    cases: Sequence[Case],
    concurrency: int,
    write: Callable[[TagRun], None],
    tagger: Tagger = graph,
    budgets: Mapping[str, int] = {},
) -> None:
    """Run a graph for each case, `concurrency` at a time; `write` gets each run when it is there.

    Args:
        context: of all cases.
        cases: households before their baskets.
        concurrency: cases at a time.
        write: keeps a run.
        tagger: the graph.
        budgets: the setting `planner_tokens` of households that have one of their own.

    Raises:
        ServerUnreachableError: the server is gone; what is finished is written, the rest is cancelled.
    """
    slots = asyncio.Semaphore(concurrency)
    settings = await asyncio.to_thread(settings_of, context)

    async def run(case: Case) -> None:
        own = context.model_copy(update={"planner_tokens": budgets.get(case.user_id, context.planner_tokens)})
        async with slots:
            state = await tagger.ainvoke(Request(user_id=case.user_id, as_of=case.as_of), context=own)
        for failure in state.get("failures", []):
            if failure.kind == "server_unreachable":
                raise ServerUnreachableError(f"{failure.reason}. Finished households are kept: run the same again")
        write(
            TagRun(
                user_id=case.user_id,
                as_of=case.as_of,
                settings=settings,
                target=sorted(case.target),
                bought=sorted(case.bought),
                history=[line.leaf for line in state["household"].history if line.leaf],
                planner_tokens=budgets.get(case.user_id),
                personas=state["personas"],
                shelves=state.get("shelves", []),
                pool=state.get("pool", []),
                tags=state["tags"],
                calls=state.get("calls", []),
                failures=state.get("failures", []),
            )
        )

    await gather_all([run(case) for case in cases])


def read_own_runs(path: Path, context: Context, budgets: Mapping[str, int] = {}) -> list[TagRun]:
    """The runs of a file that is to be continued; none if there is no such file.

    `budgets`: see `run_cases`.

    Raises:
        OutputError: it has other lines, or lines made with other settings.
    """
    runs = read_runs(path) if path.exists() else []
    wanted = settings_of(context)
    for run in runs:
        if run.planner_tokens != budgets.get(run.user_id):
            raise OutputError(
                f"{path}: the planner's budget of household {run.user_id} was {run.planner_tokens} tokens, now it is "
                f"{budgets.get(run.user_id)}; give another --out"
            )
        if run.settings != wanted:
            keys = [key for key in run.settings | wanted if run.settings.get(key) != wanted.get(key)]
            raise OutputError(
                f"{path} was made with other settings ({', '.join(sorted(keys))} differ): "
                f"household {run.user_id} with {run.settings}, now asked for {wanted}; give another --out"
            )
    return runs


def read_runs(path: Path) -> list[TagRun]:
    """The lines of an output file.

    Raises:
        OutputError: the file is missing or a line is no run.
    """
    try:
        return [TagRun.model_validate_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} has no lines of `recgpt eval arm`: {error}") from error


def compare_arms(arms: Mapping[str, Sequence[TagRun]], dataset: Dataset, embedder: Embedder) -> dict[str, Figures]:
    """The figures of each arm and of the baselines, all on the households that every arm has.

    Raises:
        OutputError: no household is in all of them.
    """
    shared = set.intersection(*({(run.user_id, run.as_of) for run in runs} for runs in arms.values()))
    if not shared:
        raise OutputError("the files have no household in common; run `recgpt eval arm` with the same --seed")
    kept = {
        name: sorted((run for run in runs if (run.user_id, run.as_of) in shared), key=lambda run: run.user_id)
        for name, runs in arms.items()
    }
    figures = {name: measure(runs, dataset, embedder) for name, runs in kept.items()}
    for name, runs in kept.items():
        if any(shelf for run in runs for shelf in run.shelves):
            figures[f"shelf of {name}"] = _hit_rates(runs, [shelf_order(run) for run in runs])
    first = next(iter(kept.values()))
    figures["popularity"] = _hit_rates(first, [_popular(dataset, run.as_of) for run in first])
    return figures


def measure(runs: Sequence[TagRun], dataset: Dataset, embedder: Embedder) -> Figures:
    """The figures of one arm, each a mean over households.

    `valid_calls`: share of calls whose answer held at the first try; `failed`: households with any failure;
    `named_leaf`: proposed tags that are a leaf's name; `nearest_leaf`: cosine of a tag and its nearest leaf;
    `new_share`: proposed tags for leaves never bought; `agreement`: personas whose name is nearer to their evidence
    than to the household's other history lines (mean cosine of leaf names).
    """
    nearest = nearest_leaves(runs, dataset, embedder)
    ranked = ranked_leaves(runs, dataset, embedder)
    names = {tag_text(path[-1]) for path in open_index(dataset, embedder).leaves}
    figures: dict[str, list[float]] = {}

    def add(key: str, values: Sequence[float]) -> None:
        if values:
            figures.setdefault(key, []).append(float(np.mean(values)))

    for run in runs:
        proposed = [entry.tag.casefold() for entry in run.pool]
        add("valid_calls", [call.valid for call in run.calls if call.attempt == 1])
        add("failed", [bool(run.failures)])
        add("personas", [len(run.personas)])
        add("final_tags", [len({tag.tag.casefold() for tag in run.tags})])
        add("distinct_tags", [len(set(proposed))])
        add("named_leaf", [tag in names for tag in proposed])
        add("nearest_leaf", [nearest[tag][1] for tag in proposed])
        add("new_share", [nearest[tag][0] not in run.bought for tag in proposed])
        add("agreement", _agreement(run, embedder))
    return {**{key: estimate(values) for key, values in figures.items()}, **_hit_rates(runs, ranked)}


def ranked_leaves(runs: Sequence[TagRun], dataset: Dataset, embedder: Embedder) -> list[list[str]]:
    """The leaves that the tags of each run name, in their order; of an arbiter's picks first."""
    nearest = nearest_leaves(runs, dataset, embedder)
    return [[nearest[tag.casefold()][0] for tag in _tags_in_order(run)] for run in runs]


def shelf_order(run: TagRun) -> list[str]:
    """The leaves on the shelves of a run's experts, in turn: what a tag of theirs is to improve on."""
    return [line.leaf for line in in_turn(run.shelves)]


def _popular(dataset: Dataset, as_of: datetime) -> list[str]:
    """Popularity as it was known at the start of the day."""
    return list(popular_leaves(dataset, datetime.combine(as_of.date(), datetime.min.time())))


def _hit_rates(runs: Sequence[TagRun], ranked: Sequence[list[str]]) -> Figures:
    result: Figures = {}
    for new in (False, True):
        values = [hit_rate_at_k(leaves, run.case, LIST, new) for leaves, run in zip(ranked, runs, strict=True)]
        result[f"hr@{LIST}.{'new' if new else 'all'}"] = estimate([value for value in values if value is not None])
    return result


def _tags_in_order(run: TagRun) -> list[str]:
    """The arbiter's picks, then what it left, the experts in turn."""
    picked = [tag.proposed for tag in run.tags]
    names = dict.fromkeys(entry.persona for entry in run.pool)
    experts = [[entry.tag for entry in run.pool if entry.persona == name] for name in names]
    return list(dict.fromkeys([*picked, *in_turn(experts)]))


def nearest_leaves(runs: Sequence[TagRun], dataset: Dataset, embedder: Embedder) -> dict[str, tuple[str, float]]:
    """The nearest leaf of each tag and its cosine (`tag2cat` of section 5), by the tag in lower case."""
    tags = sorted({tag.casefold() for run in runs for tag in _tags_in_order(run)})
    if not tags:
        return {}
    matches = open_index(dataset, embedder).nearest_leaves(tags)
    return {tag: (match.path[-1], match.similarity) for tag, match in zip(tags, matches, strict=True)}


def _agreement(run: TagRun, embedder: Embedder) -> list[float]:
    """For each persona whether its name is nearer to its evidence than to the rest of the history."""
    values = []
    for persona in run.personas:
        own = sorted({line.leaf for line in persona.evidence if line.leaf})
        rest = sorted(set(run.history) - set(own))
        if own and rest:
            name, *vectors = embedder.embed([persona.name, *own, *rest])
            similar = np.asarray(vectors) @ name
            values.append(float(similar[: len(own)].mean() > similar[len(own) :].mean()))
    return values
