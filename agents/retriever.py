"""Retrieval of items (section 8): candidates of both channels, one ranker, and the traffic allocation between them.

The cognitive channel proposes the leaves of the final tags; the utility channel what the household buys anyway
(`habit`) and what the towers expect of its behaviour (`towers`). The ranker tells each candidate's chance, and the
allocation which of them are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from langgraph.runtime import Runtime

from agents.context import Context, context_of
from agents.fallback import item_rows, stand_ins
from agents.grounding import tagged_leaves
from agents.schemas import Household, RecommendedItem, Tag
from agents.state import RecommendState
from agents.wording import own_lines, with_own_lines
from tools.allocation import Program, composite_scores, multipliers
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import ModelFilesError
from tools.history import read_history
from tools.occasions import open_occasions
from tools.purchases import Neighbours, neighbours, purchases_before, start_of_week
from tools.ranker import Candidate, load_ranker, rank_candidates
from tools.retrieval import CatalogIndex, best_sellers, open_index
from tools.towers import TowerMatch, leaf_matches, open_towers

EVIDENCE_LINES = 3
"""Of the history, for an item that no persona stands behind."""
SMOOTHING = 0.1
"""lambda of a page: scores that differ by more than a tenth of the best chance are not shared out."""
STEEPER = 1.1
"""Factor by which the floor's multiplier is raised until whole exposures keep the floor; from `LEAST_STEEP` on."""
LEAST_STEEP = 0.01


async def retrieve_items(state: RecommendState, runtime: Runtime[Context]) -> RecommendState:
    """Choose the items that are shown; each says its channel, and which tag found it.

    Where the channels propose too few, what is bought anyway fills the page, as in `agents.fallback`. Without towers
    own purchases are all of the utility channel, and `degraded` says so.

    Raises:
        ModelFilesError: there is no ranker.
    """
    items, household, notes = await asyncio.to_thread(_retrieve, context_of(runtime), state)
    return {"items": items, "household": household, "degraded": notes}


def page_program(proposed: Sequence[Candidate], context: Context, count: int) -> Program:
    """The quadratic program (section 8) of a page of `count` leaves.

    A leaf is worth its chance, the best being worth 1, and `context.exploration` more where a tag found it and the
    household never bought it (what it did buy, the utility channel proposes anyway); the mean chance of what is shown
    may not fall below `context.conversion_floor` of the best possible.

    Args:
        proposed: by the channels; at least `count`, and their chances above zero.
        context: of the request.
        count: exposures, at least one.
    """
    conversion = np.array([candidate.chance for candidate in proposed])
    explores = np.array([candidate.source == "cognitive" and candidate.new for candidate in proposed])
    floor = context.conversion_floor * float(np.sort(conversion)[::-1][:count].mean())
    worth = conversion / conversion.max() + context.exploration * explores
    return Program(worth, conversion, floor, least=count, most=count, smoothing=SMOOTHING)


def whole_exposures(program: Program, count: int) -> list[int]:
    """Which `count` candidates are shown, best composite score first.

    The optimum exposes some in part and a page can not, so the floor's multiplier is raised from the optimum's until
    the `count` best composite scores keep the floor. The bounds' multiplier changes no order.
    """
    alpha, _ = multipliers(program)
    while True:
        ranked = np.argsort(-composite_scores(program, alpha, 0.0), kind="stable")[:count]
        if program.conversion[ranked].mean() >= program.floor * (1 - 1e-9):
            return [int(row) for row in ranked]
        alpha = STEEPER * max(alpha, LEAST_STEEP)


def _retrieve(context: Context, state: RecommendState) -> tuple[list[RecommendedItem], Household, list[str]]:
    dataset, user_id, as_of = open_dataset(context.dataset), state["user_id"], state["as_of"]
    index = open_index(dataset, open_embedder(context.embedding_model))
    notes: list[str] = []
    towers: Mapping[str, TowerMatch] = {}
    try:
        towers = leaf_matches(open_towers(dataset, index.embedder, context.towers), dataset, user_id, as_of)
    except ModelFilesError as error:
        notes.append(f"the utility channel knows own purchases only: {error}")
    tags = tagged_leaves(state["tags"])
    if not tags:
        none = "there are no tags" if not state["tags"] else "no tag has a category"
        notes.append(f"items are of the utility channel alone: {none}")
    scores = {leaf: match.score for leaf, match in towers.items()}
    ranker = load_ranker(context.ranker)
    proposed = rank_candidates(
        ranker, dataset, user_id, as_of, list(tags), scores, open_occasions(dataset, index.embedder)
    )
    item_of = _items_of_leaves(index, state, proposed, tags, towers)
    if lost := [tags[leaf].tag for leaf in tags if leaf not in item_of]:
        notes.append(f"no item of their leaf category is sold for the tags: {', '.join(lost)}")
    leaves = list(item_of)
    count = min(context.items, len(leaves))
    shown = whole_exposures(page_program([proposed[leaf] for leaf in leaves], context, count), count) if count else []
    rows = item_rows(dataset, [item_of[leaves[place]] for place in shown])
    history = read_history(dataset, user_id, as_of, context.representation == "leaf")
    household = with_own_lines(state["household"], history, [leaves[place] for place in shown])
    state = {**state, "household": household}
    near = neighbours(dataset, start_of_week(as_of))
    items = [
        _recommended(rows[item_of[leaf]], proposed[leaf], tags.get(leaf), state, near)
        for leaf in (leaves[place] for place in shown)
    ]
    if count < context.items:
        items += stand_ins(context, household, as_of, {item.title for item in items})[: context.items - count]
        notes.append(
            f"the channels proposed {count} items where {context.items} were asked for; "
            f"{len(items) - count} others fill the page"
        )
    return items, household, notes


def _recommended(
    row: Mapping[str, Any], candidate: Candidate, tag: Tag | None, state: RecommendState, near: Neighbours
) -> RecommendedItem:
    """The item of a catalogue row, with what it rests on: its tag's persona, or the lines of the history near it."""
    found_by = tag if candidate.source == "cognitive" else None
    personas = {persona.name: persona for persona in state["personas"]}
    return RecommendedItem(
        item_id=row["item_id"],
        title=row["title"],
        category=row["category"],
        price=row["price"],
        tag=found_by.tag if found_by else None,
        persona=found_by.persona if found_by else None,
        channel=candidate.source,
        score=round(candidate.chance, 4),
        evidence=[line.id for line in personas[found_by.persona].evidence]
        if found_by
        else near_lines(state["household"], row["category"][-1], near),
    )


def _items_of_leaves(
    index: CatalogIndex,
    state: RecommendState,
    proposed: Mapping[str, Candidate],
    tags: Mapping[str, Tag],
    towers: Mapping[str, TowerMatch],
) -> dict[str, str]:
    """The item that stands for each leaf: the nearest to its tag, the last one bought, or the towers' best.

    It is of that leaf and sold by the start of the day; a leaf without such an item is left out.
    """
    as_of = state["as_of"]
    sold = best_sellers(index.dataset, datetime.combine(as_of.date(), datetime.min.time()))
    bought = purchases_before(index.dataset, as_of, state["user_id"])
    last = {leaf: item for leaf, title, item in bought.select("leaf", "title", "item_id").iter_rows() if title in sold}
    tagged = {leaf: tags[leaf].tag for leaf, candidate in proposed.items() if candidate.source == "cognitive"}
    near = index.search_leaves(tagged, as_of)
    found: dict[str, str] = {}
    for leaf, candidate in proposed.items():
        if candidate.source == "cognitive" and leaf in near:
            found[leaf] = near[leaf].item_id
        elif candidate.source == "habit" and leaf in last:
            found[leaf] = last[leaf]
        elif candidate.source == "towers" and (best := sold.get(towers[leaf].title)) and best[2][-1] == leaf:
            found[leaf] = best[0]
    return found


def near_lines(household: Household, leaf: str, near: Neighbours) -> list[str]:
    """Ids of the history lines that tell most of a leaf: its own best, and of others those that go with it.

    Which go with it the purchases of all households tell: hot dogs with their buns, paper towels with toilet tissue.
    """
    confidence = near.confidence(leaf)
    telling = sorted(household.history, key=lambda line: -line.weight)
    others = [line for line in telling if line.leaf in confidence and line.leaf != leaf]
    others.sort(key=lambda line: -confidence[line.leaf or ""])
    return [line.id for line in [*own_lines(telling, leaf)[:1], *others]][:EVIDENCE_LINES]
