"""V1 and V2 in the offline evaluation: what their tags list, what they repeat, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.context import Context
from agents.grounding import tagged_leaves
from agents.retriever import page_program, whole_exposures
from eval.baselines import Recommender
from eval.baskets import LEVELS
from eval.metrics import Estimate, estimate, hit_rate_at_k
from eval.offline import OURS, Evaluation, Report, drop_lists, has_lists, keep_lists, known
from eval.retrieval import Combined, Listed, Remembering, TowerRecommender
from eval.splits import WEEKS
from eval.tags import TagRun, nearest_leaves, ranked_leaves, read_runs, shelf_order
from graphs.intent import graph as intent_graph
from graphs.routes import graph as routes_graph
from tools.allocation import solve_in_closed_form, threshold, worth
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.occasions import OCCASIONS, open_occasions
from tools.ranker import FEATURES, TOWER_LEAVES, UtilityChannel, load_ranker, read_catalogue
from tools.ranker import WEIGHTS as RANKER_WEIGHTS
from tools.towers import WEIGHTS as TOWER_WEIGHTS
from tools.towers import open_towers

TAGGERS = {"v1": routes_graph, "v2": intent_graph}
"""What writes the tags of each system."""
SPLITS = ("test", *WEEKS)
OUR_MODELS = ("v1", "v2_cognitive", "shelf", "v1_combined", OURS, "utility", "towers")
"""What `list_systems` makes lists of, where there is what they are made from."""
PAGES = 100
"""Households whose pages are computed for the figures of the allocation."""


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


def list_systems(run: Evaluation, embedder: Embedder, utility: Utility | None, report: Report) -> None:
    """Lists of V1, of V2's tags alone, and where there are towers and a ranker of these and of both channels.

    What tells where a hit comes from: `shelf`, the shelves that V2's experts chose from, in their own order;
    `v1_combined`, both channels with the tags of V1, each worth what was chosen for V2's; and of the utility channel,
    which needs no tags and is asked about all households before their last basket, and about the run's in the weeks,
    `towers` alone and `utility`, the ranker.
    """
    number = {leaf: row for row, leaf in enumerate(run.levels["leaf"].entities)}
    for split in SPLITS:
        runs = {system: read_system(run, system, split) for system in TAGGERS}
        models: dict[str, tuple[Recommender, int, str]] = {}
        for system, name in (("v1", "v1"), ("v2", "v2_cognitive")):
            named = ranked_leaves(runs[system], run.dataset, embedder)
            lists = {(entry.user_id, entry.as_of): own for entry, own in zip(runs[system], named, strict=True)}
            models[name] = Listed(lists, number), len(lists), _digest(runs[system])
        if any(shelf for entry in runs["v2"] for shelf in entry.shelves):
            shelves = {(entry.user_id, entry.as_of): shelf_order(entry) for entry in runs["v2"]}
            models["shelf"] = Listed(shelves, number), len(shelves), _digest(runs["v2"])
        if utility:
            everyone = len(run.cases(split, None if split == "test" else run.users))
            for system, name in (("v1", "v1_combined"), ("v2", OURS)):
                tagged = {(entry.user_id, entry.as_of): list(tagged_leaves(entry.tags)) for entry in runs[system]}
                both = _digest(runs[system], utility.digest)
                models[name] = Remembering(Combined(run.dataset, utility.channel, tagged)), len(tagged), both
            models["utility"] = Remembering(Combined(run.dataset, utility.channel, {})), everyone, utility.digest
            towers = TowerRecommender(run.dataset, utility.channel.towers, run.levels["leaf"].entities)
            models["towers"] = Remembering(towers), everyone, utility.digest
        models = {name: found for name, found in models.items() if found[1]}
        for name in set(OUR_MODELS) - set(models):
            drop_lists(run, name, split)
        for name, (model, households, made_by) in models.items():
            key = f"{made_by}-{households}"
            for level in LEVELS if split == "test" else LEVELS[:1]:
                if not has_lists(run, name, split, level, key):
                    report(f"{split}: {name} lists {level} entities for {households:,} households")
                    keep_lists(run, name, split, level, run.at_level(model, level), run.cases(split, households), key)


@dataclass(frozen=True)
class Utility:
    """The utility channel of a run."""

    channel: UtilityChannel
    digest: str
    """Of their weights."""


def open_utility(dataset: Dataset, embedder: Embedder, towers: Path, ranker: Path) -> Utility:
    """The utility channel from its directories.

    Raises:
        ModelFilesError: one is missing, or was trained on other embeddings.
    """
    trained = load_ranker(ranker)
    channel = UtilityChannel(trained, open_towers(dataset, embedder, towers), open_occasions(dataset, embedder))
    weights = [(towers / TOWER_WEIGHTS).read_bytes(), (ranker / RANKER_WEIGHTS).read_bytes(), trained.tag_bonus]
    weights += [FEATURES, TOWER_LEAVES, OCCASIONS.read_bytes()]
    return Utility(channel, hashlib.sha256(repr(weights).encode()).hexdigest()[:16])


def _digest(runs: Sequence[TagRun], more: str = "") -> str:
    text = more + "".join(run.model_dump_json(include={"user_id", "as_of", "pool", "tags"}) for run in runs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def system_figures(run: Evaluation, embedder: Embedder) -> dict[str, Estimate]:
    """What the final tags hit, duplicates among routes or experts, and the cost a household, on the run's households.

    Returns:
        `tags.<system>.leaf.<all|new>.hit_rate`, the share of the basket that the final tags name, as many in both
        systems, and `tags.v2-v1...`, their difference household by household; `routes.<system>.duplicate_rate`;
        `cost.<system>...`.
    """
    values = {}
    hit: dict[tuple[str, bool], list[float | None]] = {}
    for system in TAGGERS:
        runs = read_system(run, system, "test")[: run.users]
        if runs:
            values[f"routes.{system}.duplicate_rate"] = estimate(_duplicate_rates(runs, run, embedder))
            values |= {f"cost.{system}.{key}": value for key, value in _costs(runs).items()}
        for new in (False, True):
            final = [list(tagged_leaves(entry.tags)) for entry in runs]
            hit[system, new] = [
                hit_rate_at_k(leaves, entry.case, len(leaves), new) for leaves, entry in zip(final, runs, strict=True)
            ]
    for new, kind in ((False, "all"), (True, "new")):
        shares = {system: hit[system, new] for system in TAGGERS}
        gains = list(zip(shares["v2"], shares["v1"], strict=False))  # the first households; one may have more by now
        values |= {f"tags.{system}.leaf.{kind}.hit_rate": estimate(known(own)) for system, own in shares.items() if own}
        if gains:
            values[f"tags.v2-v1.leaf.{kind}.hit_rate"] = estimate(
                [v2 - v1 for v2, v1 in gains if v2 is not None and v1 is not None]
            )
    return values


def allocation_figures(run: Evaluation, utility: Utility, context: Context) -> dict[str, Estimate]:
    """What the hard rule and a page of whole items lose against the optimum of the quadratic program (section 8).

    Returns:
        Over the first `PAGES` households, for `threshold` and `page`: `allocation.<rule>.loss`, the share of the
        optimum's worth, and `allocation.<rule>.exposures`, how many it shows where `context.items` are asked for. The
        hard rule may break the bounds, and is then worth more than what is allowed: a loss below zero. And of the page
        that `recgpt recommend` shows, shares of its items: `page.precision`, whose leaf is bought next, `page.new`,
        whose leaf the household never bought, and `page.ner`, whose category it never bought from (novelty exposure
        rate).
    """
    catalogue = read_catalogue(run.dataset)
    values: dict[str, list[float]] = {}
    for entry in read_system(run, "v2", "test")[: run.users][:PAGES]:
        tagged = list(tagged_leaves(entry.tags))
        found = utility.channel.rank(run.dataset, entry.user_id, entry.as_of, tagged)
        count = min(context.items, len(found))
        program = page_program(list(found.values()), context, count)
        page = np.zeros(len(found))
        places = whole_exposures(program, count)
        page[places] = 1.0
        best = worth(program, solve_in_closed_form(program))
        for rule, exposures in (("threshold", threshold(program).astype(np.float64)), ("page", page)):
            values.setdefault(f"allocation.{rule}.loss", []).append((best - worth(program, exposures)) / best)
            values.setdefault(f"allocation.{rule}.exposures", []).append(float(exposures.sum()))
        shown = [list(found)[place] for place in places]
        known_categories = catalogue.category[[catalogue.row[leaf] for leaf in entry.bought]]
        category = catalogue.category[[catalogue.row[leaf] for leaf in shown]]
        values.setdefault("page.precision", []).append(float(np.mean([leaf in entry.target for leaf in shown])))
        values.setdefault("page.new", []).append(float(np.mean([leaf not in entry.bought for leaf in shown])))
        values.setdefault("page.ner", []).append(float((~np.isin(category, known_categories)).mean()))
    return {key: estimate(found) for key, found in values.items()}


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
    """Of each household's proposed tags, the share that could go without a leaf less being named."""
    named = nearest_leaves(runs, run.dataset, embedder)
    return [
        1 - len({named[proposed.tag.casefold()][0] for proposed in entry.pool}) / len(entry.pool)
        for entry in runs
        if entry.pool
    ]


def _costs(runs: Sequence[TagRun]) -> dict[str, Estimate]:
    """Calls, tokens and seconds a household, until its tags are there, with as many at a time as the run had."""
    return {
        "llm_calls": estimate([float(len(entry.calls)) for entry in runs]),
        "prompt_tokens": estimate([float(sum(call.prompt_tokens for call in entry.calls)) for entry in runs]),
        "completion_tokens": estimate([float(sum(call.completion_tokens for call in entry.calls)) for entry in runs]),
        "seconds": estimate([_longest_way(entry) for entry in runs]),
        "valid_calls": estimate(
            [float(np.mean([call.valid for call in entry.calls if call.attempt == 1])) for entry in runs if entry.calls]
        ),
    }


def _longest_way(run: TagRun) -> float:
    """Seconds of the calls that waited for each other: agents follow one another, an agent's calls go side by side."""
    ways: dict[str, dict[str, float]] = {}
    for call in run.calls:
        own = ways.setdefault(call.agent, {})
        own[call.subject] = own.get(call.subject, 0.0) + call.seconds
    return sum(max(own.values()) for own in ways.values())
