"""Examples for the agents, from what a household really bought after a cut point in the past.

Each is the prompt that the agent would get at run time, rendered by the same prompt file from the same readers of
history and signals, and the answer that the purchases after the cut call for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel

from agents.arbiter import arbiter_values, pool_in_turn
from agents.context import Context
from agents.expert import expert_values
from agents.explainer import explainer_values, fact_values
from agents.judging import explanation_judge_task, whole_household
from agents.planner import planner_values
from agents.schemas import (
    ExpertTask,
    ExplanationTask,
    ExplanationText,
    Household,
    JudgeTask,
    Persona,
    PickedTag,
    Plan,
    PlannedPersona,
    ProposedTag,
    RecommendedItem,
    Selection,
    StyleGuideline,
    TagList,
    plan_schema,
    selection_schema,
    tags_schema,
)
from agents.style import style_values
from agents.wording import citation, own_lines, with_own_lines
from eval.splits import TRAIN_END
from prompts.template import Value
from tools.dataset import BASKET, Dataset
from tools.history import HistoryLine, number_lines
from tools.purchases import DUE_FROM
from tools.ranker import UtilityChannel
from tools.retrieval import popular_leaves
from tools.shelf import ShelfLine, fill_shelves, tag_text
from tools.signals import Signal, bearing_on
from training.explanations import FIXED_DEVICE, explanation_target
from training.mixture import ExpertKind
from training.needs import Need, load_needs
from training.view import all_events

HORIZON = timedelta(days=14)
"""The coming weeks that a plan is for."""
LEAST_LINES = 12
"""History lines before a cut: with fewer there is nothing to plan from."""
LEAST_FUTURE = 4
"""Distinct leaves bought within the horizon."""

Agent = Literal["planner", "expert", "arbiter", "style", "explainer"]
Kind = ExpertKind | Literal["hybrid", "fixed"]
"""What an expert's example teaches, in the report's words; of the other agents' examples, how their prompt is put."""
Generator = np.random.Generator


@dataclass(frozen=True)
class Settings:
    """What the data is made with; written on its card."""

    seed: int = 7
    cuts_per_user: int = 4
    experts: int = 500
    """Training examples of experts; how many the others get follows from the mixture."""
    personas: int = 3
    tags: int = Context.model_fields["tags_per_expert"].default
    picks: int = 12
    shelf: int = Context.model_fields["shelf"].default
    no_shelf: float = 0.5
    """Share of expert examples whose shelf is empty: the expert must also do without, and GRPO is of these alone."""
    history_lines: int = 32
    """Most telling lines in a planner's prompt; at run time the budget is in tokens."""


@dataclass(frozen=True)
class Future:
    """A leaf that the household bought within the horizon."""

    leaf: str
    new: bool
    """It had never bought it before the cut."""


@dataclass(frozen=True)
class Target:
    """One persona of the target plan, and the purchases that belong to it."""

    persona: Persona
    need: Need
    bought: list[Future]


@dataclass(frozen=True)
class Example:
    """One prompt and the answer to it, with how many of its tags were bought, and were new."""

    agent: Agent
    kind: Kind
    prompt_fields: dict[str, Value]
    answer: str
    bought: Sequence[Future] = ()
    """Of its tags, those that were bought next."""
    shelf: int | None = None
    """Lines on an expert's shelf."""
    ahead: Sequence[Future] = ()
    """All that was bought next, where a policy is to find it."""
    judged: JudgeTask | None = None
    """Of an explainer's text: what it is judged by."""


class Builder:
    """Builds the examples of one data set."""

    def __init__(self, view: Dataset, settings: Settings, utility: UtilityChannel | None = None) -> None:
        """Index what every cut needs: the leaves of items, the need of leaves, what sells in a need.

        Without the utility channel, which fills the shelves, there are moments and tasks, but no examples.
        """
        self._view = view
        self._utility = utility
        self._settings = settings
        needs = load_needs()
        self._needs = needs
        by_category = needs.by_category()
        leaves = view.items.select(leaf=pl.col("category").list.last(), category="category").unique(
            "leaf", keep="first"
        )
        self._need_of = {
            leaf: need
            for leaf, path in leaves.sort("leaf").iter_rows()
            for need in [next((by_category[level] for level in path if level in by_category), None)]
            if need is not None
        }
        self._user_events = {
            str(user): events
            for (user,), events in all_events(view).sort("timestamp").partition_by("user_id", as_dict=True).items()
        }
        self._items = {
            item: (title, path) for item, title, path in view.items.select("item_id", "title", "category").rows()
        }
        self._leaf_of_item = dict(view.items.select("item_id", pl.col("category").list.last()).iter_rows())

    def examples(self, user_id: str, as_of: datetime) -> Iterator[Example]:
        """All examples of one household at one cut point."""
        assert self._utility is not None
        rng = self._generator(user_id, as_of.isoformat())
        whole, future = self.moment(user_id, as_of)
        household = self.shown(whole)
        targets = self._plan(household, future, as_of, rng)
        if len(targets) < 2:
            return
        yield from _in_both_ways(self._planner(household, targets, as_of))
        evidence = [[line.leaf for line in target.persona.evidence if line.leaf] for target in targets]
        shelves = fill_shelves(
            self._view,
            user_id,
            as_of,
            evidence,
            self._settings.shelf,
            self._utility.chances(self._view, user_id, as_of),
        )
        pool: list[ProposedTag] = []
        unfit: set[str] = set()
        for target, shelf in zip(targets, shelves, strict=True):
            shown = [] if rng.random() < self._settings.no_shelf else shelf
            if shown:
                proposals = self._of_shelf(shown, future)
            else:
                proposals = self._without_shelf(target, household, future, as_of, rng)
            pooled, misfits = self._pooled(proposals, target, rng)
            pool += pooled
            unfit |= misfits
            yield self._expert(user_id, whole, target, proposals, shown, future, as_of)
            yield from self._explanation(user_id, household, whole, target, as_of, rng)
        yield from _in_both_ways(self._arbiter(household, targets, pool, unfit, future, as_of))

    def cuts(self, user_id: str) -> list[datetime]:
        """Moments just before some of the household's baskets, in random order, none in the data's first month."""
        rng = self._generator(user_id, "cuts")
        events = self._user_events[user_id]
        starts = events.group_by(BASKET).agg(pl.col("timestamp").min())["timestamp"].sort()[1:]
        earliest = self._view.first_event + timedelta(days=30)
        possible = [start for start in starts if earliest <= start <= TRAIN_END - HORIZON]
        count = min(self._settings.cuts_per_user, len(possible))
        return [possible[i] for i in rng.choice(len(possible), size=count, replace=False)] if count else []

    def _generator(self, *key: str) -> Generator:
        return np.random.default_rng([self._settings.seed, zlib.crc32("/".join(key).encode())])

    def moment(self, user_id: str, as_of: datetime) -> tuple[Household, list[Future]]:
        """A household at a cut by the run-time readers, its whole history, and what was bought after it."""
        events = self._user_events[user_id]
        before = {self._leaf_of_item[item] for item in events.filter(pl.col("timestamp") < as_of)["item_id"]}
        after = events.filter(pl.col("timestamp") >= as_of, pl.col("timestamp") < as_of + HORIZON)
        bought = dict.fromkeys(self._leaf_of_item[item] for item in after["item_id"])
        return whole_household(self._view, user_id, as_of), [Future(leaf, leaf not in before) for leaf in bought]

    def shown(self, whole: Household) -> Household:
        """What planner and arbiter see of a household: the most telling lines of its history."""
        lines = sorted(whole.history, key=lambda line: (line.weight, line.last), reverse=True)
        return whole.model_copy(update={"history": number_lines(lines[: self._settings.history_lines])})

    def _plan(self, household: Household, future: Sequence[Future], as_of: datetime, rng: Generator) -> list[Target]:
        """The needs that the coming purchases fall into, the largest first; a new leaf counts twice."""
        if len(household.history) < LEAST_LINES or len(future) < LEAST_FUTURE:
            return []
        bought: dict[str, list[Future]] = {}
        for leaf in future:
            if need := self._need_of.get(leaf.leaf):
                bought.setdefault(need.key, []).append(leaf)
        needs = {need.key: need for need in self._needs.needs}
        ranked = sorted(bought, key=lambda key: (-sum(1 + leaf.new for leaf in bought[key]), key))
        targets: list[Target] = []
        for key in ranked:
            evidence = self._evidence(household.history, key)
            if evidence and len(targets) < self._settings.personas:
                persona = self._persona(needs[key], evidence, household.signals, as_of, rng)
                targets.append(Target(persona, needs[key], bought[key]))
        return targets

    def _evidence(self, lines: Sequence[HistoryLine], need: str) -> list[HistoryLine]:
        """The most telling lines of a need, in the order of the prompt."""
        own = [line for line in lines if line.leaf in self._need_of and self._need_of[line.leaf].key == need]
        best = sorted(own, key=lambda line: -line.weight)[:4]
        return [line for line in lines if line in best]

    def _persona(
        self, need: Need, evidence: list[HistoryLine], signals: Sequence[Signal], as_of: datetime, rng: Generator
    ) -> Persona:
        """A name, an intent that the evidence supports, and the signals that touch the need."""
        occasions = [occasion for occasion in self._needs.occasions if need.key in occasion.needs]
        near = [(s, o) for s in signals if s.kind in ("holiday", "season") for o in occasions if o.signal in s.text]
        near.sort(key=lambda pair: pair[0].kind != "holiday")
        touching = [
            s
            for s in signals
            if any(leaf in self._need_of and self._need_of[leaf].key == need.key for leaf in s.categories)
        ]
        item = max(evidence, key=lambda line: line.weight)
        due = item.every_days is not None and (as_of - item.last).days >= DUE_FROM * item.every_days
        slots = {"item": (item.leaf or item.text).lower(), "purpose": _one(need.purposes, rng)}
        sentences = self._needs.sentences
        if near:
            intent = _one(sentences.occasion, rng).format(**slots, words=_one(near[0][1].words, rng))
        else:
            intent = _one(sentences.restock if due else sentences.explore, rng).format(**slots)
        return Persona(
            name=_one(need.names, rng)[:40],
            intent=intent if len(intent) <= 160 else _one(sentences.fresh, rng).format(purpose=slots["purpose"]),
            evidence=evidence,
            signals=[*(signal for signal, _ in near[:1]), *touching[:2]],
        )

    def _planner(self, household: Household, targets: Sequence[Target], as_of: datetime) -> Example:
        personas = [
            PlannedPersona(
                evidence=[citation(line) for line in target.persona.evidence],
                signals=[signal.id for signal in target.persona.signals],
                name=target.persona.name,
                intent=target.persona.intent,
            )
            for target in targets
        ]
        schema = plan_schema(
            [citation(line) for line in household.history],
            [signal.id for signal in household.signals],
            self._settings.personas,
        )
        fields = planner_values(as_of, household, self._settings.personas)
        return _example("planner", fields, Plan(personas=personas), schema, [f for t in targets for f in t.bought])

    def _of_shelf(self, shelf: Sequence[ShelfLine], future: Sequence[Future]) -> list[Future | str]:
        """What an expert should choose: all known lines, and the new ones that were bought next, then the first ones.

        They are in the order of the shelf. That is the ranker's, which knows more of the household than an expert is
        told; an answer full of purchases that nothing in the prompt points to would teach to guess.
        """
        bought = {leaf.leaf: leaf for leaf in future}
        fresh = [line.leaf for line in shelf if not line.known]
        hits = [leaf for leaf in fresh if leaf in bought]
        room = self._settings.tags - sum(line.known for line in shelf)
        chosen = set(list(dict.fromkeys([*hits, *fresh]))[: max(room, 0)])
        kept = [line.leaf for line in shelf if line.known or line.leaf in chosen]
        return [bought.get(leaf, leaf) for leaf in kept[: self._settings.tags]]

    def _without_shelf(
        self, target: Target, household: Household, future: Sequence[Future], as_of: datetime, rng: Generator
    ) -> list[Future | str]:
        """What was bought next of evidence and need, known leaves at most half, then what sells in the need."""
        settings = self._settings
        evidence = {line.leaf for line in target.persona.evidence}
        own = {leaf.leaf for leaf in target.bought}
        again = [leaf for leaf in future if not leaf.new and leaf.leaf in evidence | own][: settings.tags // 2]
        added = [leaf for leaf in target.bought if leaf.new]
        seen = evidence | {line.leaf for line in household.history} | {leaf.leaf for leaf in future}
        rest = [leaf for leaf, need in self._need_of.items() if need.key == target.need.key]
        order = dict.fromkeys([*self._sellers(target.need, as_of), *map(str, rng.permutation(rest))])
        fill = [leaf for leaf in order if leaf not in seen]
        proposals: list[Future | str] = [*again, *added, *fill]
        return proposals[: settings.tags]

    def _expert(
        self,
        user_id: str,
        whole: Household,
        target: Target,
        proposals: Sequence[Future | str],
        shelf: list[ShelfLine],
        future: Sequence[Future],
        as_of: datetime,
    ) -> Example:
        task = ExpertTask(
            user_id=user_id,
            as_of=as_of,
            profile=whole.profile,
            persona=target.persona,
            signals=whole.signals,
            shelf=shelf,
        )
        texts = list(dict.fromkeys(tag_text(_leaf(proposal)) for proposal in proposals))
        own = tuple(dict.fromkeys(tag_text(line.leaf) for line in shelf))
        example = _example(
            "expert",
            expert_values(task, len(texts)),
            TagList(tags=texts),
            tags_schema(len(texts), own),
            [leaf for leaf in proposals if isinstance(leaf, Future)],
            kind=_kind(task, proposals),
        )
        return replace(example, shelf=len(shelf), ahead=future)

    def _pooled(
        self, proposals: Sequence[Future | str], target: Target, rng: Generator
    ) -> tuple[list[ProposedTag], set[str]]:
        """An expert's tags in their order, with misfits and a near duplicate in between; and which those are."""
        good = [tag_text(_leaf(proposal)) for proposal in proposals]
        misfits = [tag_text(str(leaf)) for leaf in rng.permutation(list(self._need_of))[:2]]
        misfits.append(f"store brand {good[int(rng.integers(len(good)))]}"[:48].strip())
        tags = list(good)
        for misfit in misfits:
            tags.insert(int(rng.integers(len(tags) + 1)), misfit)
        return [ProposedTag(tag=tag, persona=target.persona.name) for tag in tags], set(misfits) - set(good)

    def _arbiter(
        self,
        household: Household,
        targets: Sequence[Target],
        pool: Sequence[ProposedTag],
        unfit: set[str],
        future: Sequence[Future],
        as_of: datetime,
    ) -> Example:
        """From the pool: what was bought next, new things first, then the first that fit; in the pool's order."""
        personas = [target.persona for target in targets]
        pool = pool_in_turn(personas, pool)
        bought = {tag_text(leaf.leaf): leaf for leaf in future}
        hits = sorted((p.tag for p in pool if p.tag in bought), key=lambda tag: not bought[tag].new)
        fitting = [proposed.tag for proposed in pool if proposed.tag not in unfit]
        chosen = set(list(dict.fromkeys([*hits, *fitting]))[: self._settings.picks])
        picks = [proposed.tag for proposed in pool if proposed.tag in chosen]
        answer = Selection(picks=[PickedTag(tag=tag, reason=_reason(tag, household)) for tag in picks])
        fields = arbiter_values(as_of, household, personas, pool, len(picks))
        schema = selection_schema([proposed.tag for proposed in pool], len(picks))
        return _example("arbiter", fields, answer, schema, [bought[tag] for tag in picks if tag in bought])

    def _explanation(
        self, user_id: str, household: Household, whole: Household, target: Target, as_of: datetime, rng: Generator
    ) -> Iterator[Example]:
        """Guideline and text for an item that the household did buy next."""
        task, leaf = self._explanation_task(user_id, household, whole, target, as_of, rng)
        purpose = _one(target.need.purposes, rng)
        if made := explanation_target(task, purpose, rng):
            style, text = made
            yield _example("style", style_values(task), style, StyleGuideline, [leaf])
            written = _example("explainer", explainer_values(task, style), text, ExplanationText, [leaf])
            yield replace(written, judged=explanation_judge_task(task, ""))
        if made := explanation_target(task, purpose, rng, FIXED_DEVICE):
            yield _example("explainer", fact_values(task), made[1], ExplanationText, [leaf], kind="fixed")

    def explanation_tasks(self, user_id: str, as_of: datetime) -> Iterator[tuple[ExplanationTask, str]]:
        """Items that the household did buy next, one a persona, each with what its need is for."""
        rng = self._generator(user_id, as_of.isoformat(), "explanations")
        whole, future = self.moment(user_id, as_of)
        household = self.shown(whole)
        for target in self._plan(household, future, as_of, rng):
            task, _ = self._explanation_task(user_id, household, whole, target, as_of, rng)
            yield task, _one(target.need.purposes, rng)

    def _explanation_task(
        self, user_id: str, household: Household, whole: Household, target: Target, as_of: datetime, rng: Generator
    ) -> tuple[ExplanationTask, Future]:
        leaf = target.bought[int(rng.integers(len(target.bought)))]
        events = self._user_events[user_id].filter(pl.col("timestamp") >= as_of)
        item_id = next(item for item in events["item_id"] if self._leaf_of_item[item] == leaf.leaf)
        title, path = self._items[item_id]
        item = RecommendedItem(
            item_id=item_id,
            title=title,
            category=path,
            price=None,
            tag=tag_text(leaf.leaf),
            persona=target.persona.name,
            channel="cognitive",
            score=1.0,
            evidence=[line.id for line in target.persona.evidence],
        )
        task = ExplanationTask(
            user_id=user_id,
            as_of=as_of,
            profile=household.profile,
            persona=target.persona,
            evidence=target.persona.evidence,
            item=item,
            own=own_lines(with_own_lines(household, whole.history, [leaf.leaf]).history, leaf.leaf),
            signals=bearing_on(household.signals, leaf.leaf),
        )
        return task, leaf

    def _sellers(self, need: Need, as_of: datetime) -> list[str]:
        """Leaves of a need by how often all households bought them in the four weeks before the day of the cut."""
        midnight = datetime.combine(as_of.date(), datetime.min.time())
        sold = popular_leaves(self._view, midnight)
        return [leaf for leaf in sold if leaf in self._need_of and self._need_of[leaf].key == need.key]


def _kind(task: ExpertTask, proposals: Sequence[Future | str]) -> Kind:
    """What of the moment the purchases followed: a trend, an occasion, or none."""
    hits = {proposal.leaf for proposal in proposals if isinstance(proposal, Future) and proposal.new}
    rising = {leaf for signal in task.signals if signal.kind == "trend" for leaf in signal.categories}
    if hits & rising:
        return "trending"
    occasions = [signal for signal in task.persona.signals if signal.kind in ("holiday", "season")]
    return "situational" if occasions else "behaviour"


def _leaf(proposal: Future | str) -> str:
    return proposal.leaf if isinstance(proposal, Future) else proposal


def _reason(tag: str, household: Household) -> str:
    """Why a tag was picked, from facts of the prompt alone."""
    for signal in household.signals:
        if tag in map(tag_text, signal.categories):
            return "rising this week" if signal.kind == "trend" else "on promotion now"
    known = {tag_text(line.leaf) for line in household.history if line.leaf}
    return "bought before" if tag in known else "new, fits the persona"


def _example(
    agent: Agent,
    fields: dict[str, Value],
    answer: BaseModel,
    schema: type[BaseModel],
    targets: Sequence[Future],
    kind: Kind = "behaviour",
) -> Example:
    """An example whose answer is valid by the very schema that the server will hold the agent to."""
    text = answer.model_dump_json()
    schema.model_validate_json(text)
    return Example(agent, kind, fields, text, targets)


def _in_both_ways(example: Example) -> Iterator[Example]:
    """An example whose prompt has entities, once as text and once as a hybrid prompt."""
    yield example
    yield replace(example, kind="hybrid")


def _one(texts: Sequence[str], rng: Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
