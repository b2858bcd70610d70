"""Training data for the agents, from what households really bought next (section 5 of the report, SFT).

    recgpt train data --dataset data/completejourney --out runs/train/data --seed 7

Each example is the prompt that the agent would get at run time, rendered by the same prompt file from the same
readers of history and signals at a cut point in the past, and the answer that the purchases after the cut call for.
Nothing from `TRAIN_END` on, and none of a household's last `HELD_OUT_BASKETS` baskets, is in the events that this
module sees at all: `training_view` takes them out first.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel

from agents.arbiter import arbiter_values
from agents.expert import expert_values
from agents.explainer import explainer_values
from agents.planner import planner_values
from agents.schemas import (
    ExpertTask,
    ExplanationTask,
    ExplanationText,
    Household,
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
from prompts.template import Value, load_prompt
from tools.dataset import Dataset, open_dataset
from tools.history import HistoryLine, number_lines, read_history
from tools.loading import load_once
from tools.signals import Signal, read_signals
from training.explanations import explanation_target
from training.needs import Need, load_needs

TRAIN_END = datetime(2017, 11, 17)
"""The evaluation weeks, and the year's only Thanksgiving, start here: no weight may have seen them."""
HELD_OUT_BASKETS = 2
"""A household's last baskets: the last is tested on, the one before it is what choices are validated on."""
HORIZON = timedelta(days=14)
"""The coming weeks that a plan is for."""
LEAST_LINES = 12
"""History lines before a cut: with fewer there is nothing to plan from."""
LEAST_FUTURE = 4
"""Distinct leaves bought within the horizon."""
VALIDATION_SHARE = 0.05

Agent = Literal["planner", "expert", "arbiter", "style", "explainer"]
Generator = np.random.Generator

SCHEMA = pl.Schema(
    {
        "agent": pl.String(),
        "user_id": pl.String(),
        "as_of": pl.Datetime("us"),
        "split": pl.String(),
        "system": pl.String(),
        "user": pl.String(),
        "answer": pl.String(),
        "targets": pl.Int64(),
        "new_targets": pl.Int64(),
    }
)


@dataclass(frozen=True)
class Settings:
    """What the data is made with; written on its card."""

    seed: int = 7
    cuts_per_user: int = 4
    personas: int = 3
    tags: int = 15
    picks: int = 12
    history_lines: int = 60
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
    prompt_fields: dict[str, Value]
    answer: str
    targets: int
    new_targets: int


def training_view(dataset: Dataset) -> Dataset:
    """The data set without what may not be trained on: it has no way to reach the held-out events."""
    events = dataset.events_before(TRAIN_END)
    held_out = (
        _all_events(dataset)
        .group_by("user_id", "session_id")
        .agg(pl.col("timestamp").min())
        .sort("timestamp", descending=True)
        .group_by("user_id", maintain_order=True)
        .head(HELD_OUT_BASKETS)
        .select("user_id", "session_id")
    )
    return dataset.with_events(events.join(held_out, on=["user_id", "session_id"], how="anti"))


class Builder:
    """Builds the examples of one data set."""

    def __init__(self, view: Dataset, settings: Settings) -> None:
        """Index what every cut needs: the leaves of items, the need of leaves, what sells in a need."""
        self._view = view
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
            for (user,), events in _all_events(view).sort("timestamp").partition_by("user_id", as_dict=True).items()
        }
        self._items = {
            item: (title, path) for item, title, path in view.items.select("item_id", "title", "category").rows()
        }
        self._leaf_of_item = dict(view.items.select("item_id", pl.col("category").list.last()).iter_rows())

    def examples(self, user_id: str) -> Iterator[tuple[datetime, Example]]:
        """All examples of one household, at its cut points."""
        rng = np.random.default_rng([self._settings.seed, zlib.crc32(user_id.encode())])
        for as_of in self._cuts(user_id, rng):
            household, future = self._context(user_id, as_of)
            targets = self._plan(household, future, as_of, rng)
            if len(targets) < 2:
                continue
            yield as_of, self._planner(household, targets, as_of)
            for target in targets:
                yield as_of, self._expert(user_id, household, target, as_of, rng)
                yield from ((as_of, example) for example in self._explanation(user_id, household, target, as_of, rng))
            yield as_of, self._arbiter(household, targets, as_of, rng)

    def _cuts(self, user_id: str, rng: Generator) -> list[datetime]:
        """Moments just before some of the household's baskets, not in the first month of the data."""
        events = self._user_events[user_id]
        starts = events.group_by("session_id").agg(pl.col("timestamp").min())["timestamp"].sort()[1:]
        earliest = self._view.first_event + timedelta(days=30)
        possible = [start for start in starts if earliest <= start <= TRAIN_END - HORIZON]
        count = min(self._settings.cuts_per_user, len(possible))
        return [possible[i] for i in sorted(rng.choice(len(possible), size=count, replace=False))] if count else []

    def _context(self, user_id: str, as_of: datetime) -> tuple[Household, list[Future]]:
        """What the agents see at a cut, by the run-time readers, and what was bought after it."""
        lines = read_history(self._view, user_id, as_of)
        events = self._user_events[user_id]
        before = {self._leaf_of_item[item] for item in events.filter(pl.col("timestamp") < as_of)["item_id"]}
        after = events.filter(pl.col("timestamp") >= as_of, pl.col("timestamp") < as_of + HORIZON)
        bought = dict.fromkeys(self._leaf_of_item[item] for item in after["item_id"])
        household = Household(
            profile=self._view.user(user_id)[0],
            history=number_lines(lines[: self._settings.history_lines]),
            signals=read_signals(self._view, user_id, as_of),
        )
        return household, [Future(leaf, leaf not in before) for leaf in bought]

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
        due = item.every_days is not None and (as_of - item.last).days >= 0.7 * item.every_days
        slots = {"item": item.text.split(",")[0].lower(), "purpose": _one(need.purposes, rng)}
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
                name=target.persona.name,
                intent=target.persona.intent,
                evidence=[line.id for line in target.persona.evidence],
                signals=[signal.id for signal in target.persona.signals],
            )
            for target in targets
        ]
        schema = plan_schema(
            [line.id for line in household.history],
            [signal.id for signal in household.signals],
            self._settings.personas,
        )
        fields = planner_values(as_of, household, self._settings.personas)
        return _example("planner", fields, Plan(personas=personas), schema, [f for t in targets for f in t.bought])

    def _expert(self, user_id: str, household: Household, target: Target, as_of: datetime, rng: Generator) -> Example:
        """Tags from the persona's own purchases, half of them new where there are enough, filled from what sells."""
        new = [leaf.leaf for leaf in target.bought if leaf.new]
        known = [leaf.leaf for leaf in target.bought if not leaf.new]
        rng.shuffle(new)
        rng.shuffle(known)
        count = self._settings.tags
        chosen = [*new, *known[: max(count // 2, count - len(new))]][:count]
        seen = {line.leaf for line in household.history}
        filler = [leaf for leaf in self._sellers(target.need, as_of) if leaf not in chosen and leaf not in seen]
        tags = [*chosen, *filler][:count]
        rest = [leaf for leaf, need in self._need_of.items() if need.key == target.need.key and leaf not in tags]
        tags += [str(leaf) for leaf in rng.permutation(rest)[: count - len(tags)]]
        rng.shuffle(tags)
        task = ExpertTask(
            user_id=user_id,
            as_of=as_of,
            profile=household.profile,
            persona=target.persona,
            signals=household.signals,
        )
        texts = [tag_text(tag) for tag in tags]
        return _example(
            "expert",
            expert_values(task, len(texts)),
            TagList(tags=texts),
            tags_schema(len(texts)),
            [leaf for leaf in target.bought if leaf.leaf in chosen],
        )

    def _arbiter(self, household: Household, targets: Sequence[Target], as_of: datetime, rng: Generator) -> Example:
        """From a pool of hits, misfits of the same needs and near duplicates: the hits, new ones first."""
        hits = {tag_text(leaf.leaf): (leaf, target) for target in targets for leaf in target.bought}
        picks = sorted(hits, key=lambda tag: (not hits[tag][0].new, tag))[: self._settings.picks]
        pool = [ProposedTag(tag=tag, persona=hits[tag][1].persona.name) for tag in picks]
        for target in targets:
            misfits = [leaf for leaf, need in self._need_of.items() if need.key == target.need.key]
            names = [tag_text(str(leaf)) for leaf in rng.permutation(misfits)[:5]]
            pool += [ProposedTag(tag=tag, persona=target.persona.name) for tag in names if tag not in hits]
            double = rng.choice([proposed.tag for proposed in pool])
            pool.append(ProposedTag(tag=f"store brand {double}"[:48], persona=target.persona.name))
        pool = list({proposed.tag: proposed for proposed in pool}.values())
        pool = [pool[i] for i in rng.permutation(len(pool))]
        answer = Selection(picks=[PickedTag(tag=tag, reason=_reason(hits[tag][0], household)) for tag in picks])
        fields = arbiter_values(as_of, household, [target.persona for target in targets], pool, len(picks))
        schema = selection_schema([proposed.tag for proposed in pool], len(picks))
        return _example("arbiter", fields, answer, schema, [hits[tag][0] for tag in picks])

    def _explanation(
        self, user_id: str, household: Household, target: Target, as_of: datetime, rng: Generator
    ) -> Iterator[Example]:
        """Guideline and text for an item that the household did buy next."""
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
            signals=household.signals,
        )
        made = explanation_target(task, _one(target.need.purposes, rng), rng)
        if made:
            style, text = made
            yield _example("style", style_values(task), style, StyleGuideline, [leaf])
            yield _example("explainer", explainer_values(task, style), text, ExplanationText, [leaf])

    def _sellers(self, need: Need, as_of: datetime) -> list[str]:
        """Leaves of a need by how often all households bought them in the four weeks before the day of the cut."""
        midnight = datetime.combine(as_of.date(), datetime.min.time())
        sold = _leaf_sales(self._view, midnight)
        return [leaf for leaf in sold if leaf in self._need_of and self._need_of[leaf].key == need.key]


def tag_text(leaf: str) -> str:
    """A leaf's name as one would type it into a search: `Shredded Cheese` is `shredded cheese`."""
    return leaf.lower()[:48].strip(" ,-")


def _reason(leaf: Future, household: Household) -> str:
    """Why a tag hits, from facts of the prompt alone."""
    for signal in household.signals:
        if leaf.leaf in signal.categories:
            return "rising this week" if signal.kind == "trend" else "on promotion now"
    return "new, fits the persona" if leaf.new else "bought before"


def _example(
    agent: Agent, fields: dict[str, Value], answer: BaseModel, schema: type[BaseModel], targets: Sequence[Future]
) -> Example:
    """An example whose answer is valid by the very schema that the server will hold the agent to."""
    text = answer.model_dump_json()
    schema.model_validate_json(text)
    return Example(agent, fields, text, len(targets), sum(leaf.new for leaf in targets))


def _one(texts: Sequence[str], rng: Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _all_events(dataset: Dataset) -> pl.DataFrame:
    return dataset.events_before(dataset.last_event + timedelta(seconds=1))


@load_once(maxsize=512)
def _leaf_sales(view: Dataset, midnight: datetime) -> tuple[str, ...]:
    """Leaves by purchases in the four weeks before a day, most first."""
    return tuple(
        view.events_before(midnight, since=midnight - timedelta(days=28))
        .join(view.items.select("item_id", leaf=pl.col("category").list.last()), on="item_id")
        .group_by("leaf")
        .len()
        .sort("len", "leaf", descending=[True, False])["leaf"]
    )


def write_training_data(
    directory: Path, out: Path, settings: Settings, users: int | None, report: Callable[[str], None]
) -> dict[str, object]:
    """Write `examples.parquet` and its card `card.json`; the same settings give the same bytes.

    Args:
        directory: data set.
        out: where to.
        settings: on the card.
        users: only so many households, the first of a seeded order; None for all.
        report: called with a sentence on the progress.
    """
    view = training_view(open_dataset(directory))
    builder = Builder(view, settings)
    everybody = sorted(_all_events(view)["user_id"].unique())
    chosen = np.random.default_rng(settings.seed).permutation(everybody)[:users]
    rows: list[tuple[object, ...]] = []
    for number, user_id in enumerate(map(str, chosen), 1):
        split = "validation" if zlib.crc32(user_id.encode()) % 1000 < 1000 * VALIDATION_SHARE else "train"
        for as_of, example in builder.examples(user_id):
            system, question = load_prompt(example.agent, "v1").render(example.prompt_fields)
            texts = (str(system.content), str(question.content), example.answer)
            rows.append((example.agent, user_id, as_of, split, *texts, example.targets, example.new_targets))
        if number % 50 == 0:
            report(f"{number:,} of {len(chosen):,} households, {len(rows):,} examples")
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    out.mkdir(parents=True, exist_ok=True)
    table.write_parquet(out / "examples.parquet", compression="zstd")
    card = _card(table, view, settings, (out / "examples.parquet").read_bytes())
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _card(table: pl.DataFrame, view: Dataset, settings: Settings, content: bytes) -> dict[str, object]:
    counts = table.group_by("agent", "split").len().sort("agent", "split").rows()
    shares = table.group_by("agent").agg(pl.col("new_targets").sum() / pl.col("targets").sum()).sort("agent").rows()
    return {
        "data_set": view.info.name,
        "events_before": TRAIN_END.isoformat(),
        "held_out_baskets": HELD_OUT_BASKETS,
        "last_event": view.last_event.isoformat(),
        "settings": asdict(settings),
        "households": table["user_id"].n_unique(),
        "examples": {f"{agent}.{split}": count for agent, split, count in counts},
        "new_share_of_targets": {agent: round(share, 3) for agent, share in shares},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
