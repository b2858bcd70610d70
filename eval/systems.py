"""V1 and V2 in the offline evaluation: what their tags list, what they repeat, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from eval.baselines import Recommender
from eval.baskets import LEVELS
from eval.metrics import Estimate, estimate
from eval.offline import OURS, Evaluation, keep_lists
from eval.retrieval import DEPTH, Combined, Listed, TowerRecommender
from eval.splits import WEEKS
from eval.tags import TagRun, nearest_leaves, ranked_leaves, read_runs
from graphs.intent import graph as intent_graph
from graphs.routes import graph as routes_graph
from tools.embedding import Embedder
from tools.ranker import Ranker
from tools.towers import TowerIndex

TAGGERS = {"v1": routes_graph, "v2": intent_graph}
"""What writes the tags of each system."""
SPLITS = ("test", *WEEKS)


def runs_path(run: Evaluation, system: str, split: str) -> Path:
    """Where a system's runs of a split are kept."""
    return run.out / "tags" / f"{split}.{system}.jsonl"


def read_system(run: Evaluation, system: str, split: str) -> list[TagRun]:
    """A system's runs of a split in the order of its cases, up to the first case without one."""
    path = runs_path(run, system, split)
    found = {(entry.user_id, entry.as_of): entry for entry in read_runs(path)} if path.exists() else {}
    ordered = []
    for case in run.cases(split, None):
        if (case.user_id, case.as_of) not in found:
            break
        ordered.append(found[case.user_id, case.as_of])
    return ordered


def list_systems(run: Evaluation, embedder: Embedder, index: TowerIndex, ranker: Ranker) -> None:
    """Lists of V1, of V2's tags alone, of the towers alone, and of both channels together, wherever tags are there."""
    leaves = run.levels["leaf"].entities
    number = {leaf: row for row, leaf in enumerate(leaves)}
    for split in SPLITS:
        levels = LEVELS if split == "test" else LEVELS[:1]
        tagged: dict[str, dict[tuple[str, datetime], list[str]]] = {}
        for system in TAGGERS:
            runs = read_system(run, system, split)
            names = ranked_leaves(runs, run.dataset, embedder)
            tagged[system] = {(entry.user_id, entry.as_of): own[:DEPTH] for entry, own in zip(runs, names, strict=True)}
        models: dict[str, tuple[Recommender, Mapping[tuple[str, datetime], Sequence[str]]]] = {
            "v1": (Listed(tagged["v1"], number), tagged["v1"]),
            "v2_cognitive": (Listed(tagged["v2"], number), tagged["v2"]),
            OURS: (Combined(run.dataset, index, ranker, tagged["v2"], leaves), tagged["v2"]),
            "towers": (TowerRecommender(run.dataset, index, leaves), tagged["v2"]),
        }
        for name, (model, asked) in models.items():
            for level in levels if asked else ():
                keep_lists(run, name, split, level, run.at_level(model, level), run.cases(split, len(asked)))


def system_figures(run: Evaluation, embedder: Embedder) -> dict[str, Estimate]:
    """Duplicates among routes or experts, and the cost a household, on the run's households."""
    values = {}
    for system in TAGGERS:
        runs = read_system(run, system, "test")[: run.users]
        if runs:
            values[f"routes.{system}.duplicate_rate"] = estimate(_duplicate_rates(runs, run, embedder))
            values |= {f"cost.{system}.{key}": value for key, value in _costs(runs).items()}
    return values


def tokens_by_agent(runs: Sequence[TagRun]) -> dict[str, tuple[float, float]]:
    """Prompt and completion tokens a household, by agent."""
    agents = dict.fromkeys(call.agent for entry in runs for call in entry.calls)
    calls = [call for entry in runs for call in entry.calls]
    return {
        agent: (
            sum(call.prompt_tokens for call in calls if call.agent == agent) / len(runs),
            sum(call.completion_tokens for call in calls if call.agent == agent) / len(runs),
        )
        for agent in agents
    }


def _duplicate_rates(runs: Sequence[TagRun], run: Evaluation, embedder: Embedder) -> list[float]:
    """Of each household's tags, the share whose leaf another of its tags names too."""
    named = nearest_leaves(runs, run.dataset, embedder)
    return [
        1 - len({named[proposed.tag.casefold()][0] for proposed in entry.pool}) / len(entry.pool)
        for entry in runs
        if entry.pool
    ]


def _costs(runs: Sequence[TagRun]) -> dict[str, Estimate]:
    """Calls, tokens and seconds a household, until its tags are there."""
    return {
        "llm_calls": estimate([float(len(entry.calls)) for entry in runs]),
        "prompt_tokens": estimate([float(sum(call.prompt_tokens for call in entry.calls)) for entry in runs]),
        "completion_tokens": estimate([float(sum(call.completion_tokens for call in entry.calls)) for entry in runs]),
        "seconds": estimate([float(np.sum([call.seconds for call in entry.calls])) for entry in runs]),
        "valid_calls": estimate(
            [float(np.mean([call.valid for call in entry.calls if call.attempt == 1])) for entry in runs if entry.calls]
        ),
    }
