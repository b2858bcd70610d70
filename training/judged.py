"""Judged texts whose labels are known by construction (section 7): what the judge is tuned on and measured by.

    recgpt judge data --out runs/judge

Positives are what households bought next, and explanations made of their facts; negatives are known faults, a dimension
each: another household's tags and texts, tags too broad or of nothing, contradicted facts, the wrong season or holiday,
templates, unsafe claims, broken sentences, shouting. Households are split, and so are the wordings (`judged.yaml`).
Only events that may be trained on are read (`training_view`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict

from agents.claims import find_claims, product_words
from agents.context import Context
from agents.judging import explanation_judge_task, history_fact, quotes, subject_lines, tag_judge_tasks
from agents.reviewer import grade_labels
from agents.schemas import DimensionLabel, ExplanationTask, Grade, Household, JudgeTask
from agents.wording import occasion_of, profile_text, shelf_text
from eval.judged import JudgedText, Split, split_of
from prompts.rubric import Label, Subject
from tools.dataset import Dataset
from tools.retrieval import CatalogIndex, leaf_paths
from tools.shelf import tag_text
from training.examples import Builder, Settings

WORDINGS_FILE = Path(__file__).parent / "judged.yaml"
THRESHOLD: float = Context.model_fields["judge_threshold"].default
"""Tau of the grades."""
CLEAR = {"Superior": 6, "Average": 3}
"""Positive labels of an explanation from which it is graded Superior, and up to which Average: between them one label
more or less, and many are a matter of taste, would decide."""
FITS, MISFITS = 1.5, 0.5
"""Lifts of a leaf among households of a profile from and up to which it fits or contradicts the profile."""
CERTAIN = 3.0
"""Standard errors by which the logarithm of a lift must differ from 0: thousands of leaves are compared."""
UNLIKE = 0.5
"""Similarity below which a swapped tag is like nothing that the household buys."""
TRAITS = {
    "children": r"\b(?:\d|\d or more) child",
    "no children": r"no children",
    "age 65 or older": r"Age 65",
    "age under 35": r"Age (?:19|25)",
}
"""What of a profile leaves are compared by, each with how a profile says it."""

LABELLED: dict[Subject, tuple[str, ...]] = {
    "tags": ("Consistency", "Relevance", "Specificity", "Validity"),
    "explanations": (
        *("Attractiveness", "Clarity", "Factuality", "Informativeness", "Relevance", "Safety", "Timeliness"),
    ),
}
"""Dimensions that labels are made for; a rubric beside them is judged, and has none here."""

Generator = np.random.Generator
T = TypeVar("T")
Known = dict[str, tuple[Label, str]]
"""Label and evidence by dimension."""


class Sayings(BaseModel):
    """A fact said plainly or vividly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plain: list[str]
    vivid: list[str] = []


class Wordings(BaseModel):
    """The wordings of one split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    habit: Sayings
    companion: Sayings
    occasion: Sayings
    season: Sayings
    trend: Sayings
    title: Sayings
    use: list[str]
    size: list[str]
    wrong: dict[str, list[str]]
    empty: list[str]
    unsafe: list[str]
    shouting: list[str]
    unusual: list[str]
    broad: list[str]
    nothing: list[str]


class WordingsFile(BaseModel):
    """`judged.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Wordings
    validation: Wordings
    test: Wordings
    orders: list[str]
    holidays: list[str]
    seasons: list[str]


@lru_cache(maxsize=1)
def load_wordings() -> WordingsFile:
    """Read and validate `judged.yaml`."""
    return WordingsFile.model_validate(yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Draft:
    """A text before it is graded."""

    source: str
    text: str
    known: Known
    near: str | None = None
    """Category that a line of the shown history must be of, for the label of Relevance to hold; it is the evidence."""


@dataclass(frozen=True)
class Facts:
    """An explanation's task, and what wordings may say of it."""

    task: ExplanationTask
    slots: Mapping[str, str]
    lines: Mapping[str, str]
    """Of each ground that holds, the line of the facts that it rests on."""


class Maker:
    """Makes the judged texts of one data set."""

    def __init__(self, view: Dataset, index: CatalogIndex, seed: int) -> None:
        """Index what every household needs.

        Args:
            view: what may be trained on.
            index: of the catalogue.
            seed: of all choices.
        """
        self._view, self._index, self._seed = view, index, seed
        self._builder = Builder(view, Settings(seed=seed, history_lines=1000))
        self._paths = {path[-1]: path for path in leaf_paths(view)}
        self._category = {leaf: path[-2] if len(path) > 1 else leaf for leaf, path in self._paths.items()}
        self._products = product_words(view)
        self._lifts = profile_lifts(view)

    def tags(self, user_id: str, as_of: datetime, other_user: str, other_as_of: datetime) -> list[JudgedText]:
        """Judged tags of one household; the other one's next purchases are the swapped ones."""
        rng = self._generator("tags", user_id, as_of.isoformat())
        whole, future = self._builder.moment(user_id, as_of)
        household = self._builder.shown(whole)
        _, others = self._builder.moment(other_user, other_as_of)
        if not household.history or not future:
            return []
        words = getattr(load_wordings(), split_of(user_id))
        drafts = list(
            self._tag_drafts(household, as_of, [f.leaf for f in future], [f.leaf for f in others], words, rng)
        )
        tasks = tag_judge_tasks(user_id, as_of, household, [draft.text for draft in drafts], self._index)
        shown = [_with_what_is_shown(*one) for one in zip(drafts, tasks, strict=True)]
        return [
            self._judged(draft, task, as_of, number)
            for number, (draft, task) in enumerate(zip(shown, tasks, strict=True))
            if draft is not None
        ]

    def explanations(self, user_id: str, as_of: datetime, other_user: str, other_as_of: datetime) -> list[JudgedText]:
        """Judged explanations of one item of the household; the other household's text is the swapped one."""
        rng = self._generator("explanations", user_id, as_of.isoformat())
        words: Wordings = getattr(load_wordings(), split_of(user_id))
        facts = self.explained(user_id, as_of)
        if facts is None:
            return []
        others = [_facts(*one) for one in self._builder.explanation_tasks(other_user, other_as_of)]
        leaf = facts.task.item.category[-1]
        swapped = [
            other
            for other in others
            if other.task.item.category[-1] != leaf and other.lines.keys() & {"habit", "companion"}
        ]
        drafts = list(self._explanation_drafts(facts, swapped, words, rng))
        judged = []
        for number, draft in enumerate(drafts):
            claims = find_claims(draft.text, facts.task, self._products)
            item = facts.task.item.model_copy(update={"claims": claims})
            task = explanation_judge_task(facts.task.model_copy(update={"item": item}), draft.text)
            judged.append(self._judged(draft, task, as_of, number))
        return judged

    def explained(self, user_id: str, as_of: datetime) -> Facts | None:
        """The item whose explanations are judged, one that the household bought next; None where there is none."""
        found = list(self._builder.explanation_tasks(user_id, as_of))
        return _facts(*_one(found, self._generator("item", user_id, as_of.isoformat()))) if found else None

    def moments(self, split: Split, count: int) -> list[tuple[str, datetime]]:
        """So many households of a split, in a seeded order, at a moment each."""
        users = sorted(self._view.events_before(self._view.last_event)["user_id"].unique())
        shuffled = [str(user) for user in np.random.default_rng(self._seed).permutation(users)]
        own = (user for user in shuffled if split_of(user) == split)
        found = ((user, cuts[0]) for user in own if (cuts := self._builder.cuts(user)))
        return list(islice(found, count))

    def _generator(self, *key: str) -> Generator:
        return np.random.default_rng([self._seed, zlib.crc32("/".join(key).encode())])

    def _judged(self, draft: Draft, task: JudgeTask, as_of: datetime, number: int) -> JudgedText:
        labels = {dimension: label for dimension, (label, _) in draft.known.items()}
        complete = labels.keys() == set(LABELLED[task.kind])
        context = context_name(task.user_id, as_of, task.subject_id if task.kind == "explanations" else None)
        return JudgedText(
            id=f"{task.kind}/{context}/{number}",
            split=split_of(task.user_id),
            source=draft.source,
            context=context,
            task=task,
            labels=labels,
            evidence={dimension: evidence for dimension, (_, evidence) in draft.known.items()},
            grade=grade_of(labels, complete, task.kind),
        )

    # ---- tags -------------------------------------------------------------------------------------------------

    def _tag_drafts(
        self,
        household: Household,
        as_of: datetime,
        bought_next: Sequence[str],
        swapped: Sequence[str],
        words: Wordings,
        rng: Generator,
    ) -> Iterator[Draft]:
        best = sorted(household.history, key=lambda line: line.weight)
        lines = {line.leaf: history_fact(line, as_of) for line in best if line.leaf}  # the most telling of each leaf
        categories = {self._category[leaf] for leaf in lines}
        signalled = {leaf: signal.text for signal in household.signals for leaf in signal.categories}
        others = [leaf for leaf in self._paths if leaf not in lines and leaf not in bought_next]
        near = [leaf for leaf in others if self._category[leaf] in categories]

        def of_leaf(source: str, leaf: str, relevance: tuple[Label, str] | None) -> Draft:
            fit = self._fit(leaf, household.profile)
            if source == "bought_next" and fit == "negative":  # what it did buy is not against its profile
                fit = "neutral"
            known: Known = {
                "Consistency": (fit, profile_text(household.profile)),
                "Specificity": ("positive", tag_text(leaf)),
                "Validity": ("positive", shelf_text(self._paths[leaf])),
            }
            return Draft(source, tag_text(leaf), known | ({"Relevance": relevance} if relevance else {}))

        again = [leaf for leaf in bought_next if leaf in lines]
        chosen = _some(again, 2, rng)
        for leaf in chosen:
            yield of_leaf("bought_next", leaf, ("positive", lines[leaf]))
        for leaf in _some([leaf for leaf in near if leaf in signalled], 1, rng):
            yield of_leaf("signalled", leaf, ("positive", signalled[leaf]))
        for leaf in _some([leaf for leaf in near if leaf not in signalled], 2, rng):
            neutral = of_leaf("of_a_known_category", leaf, ("neutral", ""))
            yield replace(neutral, near=self._category[leaf])
        foreign = [leaf for leaf in self._unlike(swapped, lines) if leaf in others and leaf not in near]
        for leaf in _some([leaf for leaf in foreign if leaf not in signalled], 2, rng):
            yield of_leaf("swapped", leaf, ("negative", tag_text(leaf)))
        for fit, source in (("negative", "against_the_profile"), ("positive", "of_the_profile")):
            for leaf in _some([leaf for leaf in others if self._fit(leaf, household.profile) == fit], 1, rng):
                yield of_leaf(source, leaf, None)
        for leaf in _some([leaf for leaf in lines if self._category[leaf] not in self._paths], 1, rng):
            category = tag_text(self._category[leaf])
            broader = of_leaf("category", leaf, ("positive", lines[leaf]))
            known: Known = dict.fromkeys(("Specificity", "Validity"), ("neutral", category))
            yield replace(broader, text=category, known=broader.known | known)
        if chosen and (halves := _halves(chosen[0])):
            text = _fill(words.unusual, halves, rng)
            usual = of_leaf("unusual", chosen[0], ("positive", lines[chosen[0]]))
            own: Known = {"Validity": ("neutral", text), "Specificity": ("positive", text)}
            yield replace(usual, text=text, known=usual.known | own)
        leaf = _one(list(lines), rng)
        slots = {
            "department": self._paths[leaf][0].lower(),
            "word": tag_text(leaf).split()[-1],
            "month": str(rng.integers(1, 13)),
            "day": str(rng.integers(10, 29)),
            "code": str(rng.integers(10_000, 99_999)),
        }
        broad, nothing = _fill(words.broad, slots, rng), _fill(words.nothing, slots, rng)
        yield Draft("broad", broad, {"Specificity": ("negative", broad)})
        yield Draft("nowhere", nothing, {"Validity": ("negative", nothing)})

    def _unlike(self, leaves: Sequence[str], own: Container[str]) -> list[str]:
        """Of the leaves those that are like none of the household's own."""
        names = list(dict.fromkeys(leaves))
        mine = np.array([path[-1] in own for path in self._index.leaves])
        similarities, ranked = self._index.rank_leaves([tag_text(leaf) for leaf in names])
        nearest = np.where(mine[ranked], similarities, -1).max(axis=1, initial=0.0)
        return [leaf for leaf, similarity in zip(names, nearest, strict=True) if similarity < UNLIKE]

    def _fit(self, leaf: str, profile: str | None) -> Label:
        """Whether a leaf sells among households of a profile's traits."""
        lifts = [self._lifts.get((leaf, trait), 1.0) for trait in traits(profile)]
        if any(lift <= MISFITS for lift in lifts):
            return "negative"
        return "positive" if any(lift >= FITS for lift in lifts) else "neutral"

    # ---- explanations -----------------------------------------------------------------------------------------

    def _explanation_drafts(
        self, facts: Facts, swapped: Sequence[Facts], words: Wordings, rng: Generator
    ) -> Iterator[Draft]:
        grounds = list(facts.lines)
        for ground in _some(grounds, 2, rng):
            yield self._faithful(facts, ground, words, rng)
        for tail in ("", _one(["use", "size"], rng)):
            yield self._faithful(facts, "title", words, rng, tail)

        def base() -> Draft:
            return self._faithful(facts, _one(grounds, rng) if grounds else "title", words, rng)

        for what in _some([what for what in words.wrong if what != "occasion"], 2, rng):
            if wrong := self._contradicted(what, facts, base(), words, rng):
                yield wrong
        sentence = _fill(words.wrong["occasion"], dict(facts.slots) | self._wrong_slots(facts, rng), rng)
        yield _with(base(), "wrong_moment", sentence, {"Timeliness": "negative", "Factuality": "negative"})
        for other in swapped[:1]:
            text = self._faithful(other, _one(sorted(other.lines.keys() & {"habit", "companion"}), rng), words, rng)
            first = subject_lines(text.text)[0]["text"]
            known: Known = {
                "Relevance": ("negative", first),
                "Factuality": ("negative", first),
                "Clarity": ("positive", first),
                "Safety": ("positive", first),
            }
            yield Draft("swapped", text.text, known)
        empty = _fill(words.empty, facts.slots, rng)
        neutral: Known = dict.fromkeys(("Relevance", "Factuality", "Timeliness", "Attractiveness"), ("neutral", empty))
        sound: Known = dict.fromkeys(("Clarity", "Safety"), ("positive", empty))
        yield Draft("template", empty, {**neutral, **sound, "Informativeness": ("negative", empty)})
        yield _with(base(), "unsafe", _fill(words.unsafe, facts.slots, rng), {"Safety": "negative"}, ["Factuality"])
        yield _with(
            base(),
            "shouting",
            _fill(words.shouting, facts.slots, rng),
            {"Attractiveness": "negative"},
            ["Factuality", "Clarity"],
        )
        yield _broken(base(), rng)

    def _faithful(self, facts: Facts, ground: str, words: Wordings, rng: Generator, tail: str | None = None) -> Draft:
        """A text whose every statement holds: an opening that rests on `ground`, and one more sentence.

        That is a second ground, what the item is for, its size, or nothing (`tail`; drawn where it is None).
        """
        others = sorted(facts.lines.keys() - {ground})
        if tail is None:
            tail = _one([*(["second"] * 2 if others else []), "use", "size"], rng)
        sayings: Sayings = getattr(words, ground)
        vivid = bool(sayings.vivid) and rng.random() < 0.5
        sentences = [_fill(sayings.vivid if vivid else sayings.plain, facts.slots, rng)]
        grounds = [ground]
        if tail == "second":
            grounds.append(_one(others, rng))
            sentences.append(_fill(getattr(words, grounds[-1]).plain, facts.slots, rng))
        elif tail and (tail != "size" or "size" in facts.slots):
            sentences.append(_fill(getattr(words, tail), facts.slots, rng))
        text = " ".join(map(_capital, sentences))
        first = subject_lines(text)[0]["text"]
        of_household = [facts.lines[one] for one in grounds if one in ("habit", "companion")]
        of_moment = [facts.lines[one] for one in grounds if one in ("occasion", "season", "trend")]
        known: Known = {
            "Relevance": ("positive", of_household[0]) if of_household else ("neutral", first),
            "Factuality": ("positive", facts.lines.get(ground, facts.task.item.title)),
            "Clarity": ("positive", first),
            "Safety": ("positive", first),
            "Timeliness": ("positive", of_moment[0]) if of_moment else ("neutral", first),
            "Informativeness": ("positive" if ground != "title" or len(sentences) > 1 else "neutral", first),
            "Attractiveness": ("positive" if vivid else "neutral", first),
        }
        return Draft("faithful" if ground != "title" else "title", text, known)

    def _contradicted(self, what: str, facts: Facts, base: Draft, words: Wordings, rng: Generator) -> Draft | None:
        """The base with a fact that the task contradicts or does not have; None where it could not be told."""
        if (what == "times" and "times" not in facts.slots) or (what == "size" and "size" not in facts.slots):
            return None
        slots = dict(facts.slots) | self._wrong_slots(facts, rng)
        sentence = _capital(_fill(words.wrong[what], slots, rng))
        if what in ("times", "other"):  # in the place of what the base rests on
            known: Known = {
                "Factuality": ("negative", sentence),
                "Clarity": ("positive", sentence),
                "Safety": ("positive", sentence),
            }
            return Draft("contradicted", sentence, known)
        return _with(base, "contradicted", sentence, {"Factuality": "negative"}, ["Safety"])

    def _wrong_slots(self, facts: Facts, rng: Generator) -> dict[str, str]:
        known = " ".join(signal.text for signal in facts.task.signals)
        lines = {line.leaf for line in [*facts.task.own, *facts.task.evidence]} | {facts.task.item.category[-1]}
        strangers = [leaf for leaf in self._paths if leaf not in lines]
        times = int(facts.slots.get("times", "2"))
        amount, _, unit = facts.slots.get("size", "12 oz").partition(" ")
        wordings = load_wordings()
        return {
            "wrong_times": str(times + int(rng.integers(2, 12))),
            "wrong_other": _one(strangers, rng).lower(),
            "wrong_size": f"{float(re.sub(r'[^0-9.]', '', amount) or 1) * _one([2, 3, 5], rng):g} {unit}".strip(),
            "wrong_holiday": _one([day for day in wordings.holidays if day.split()[0] not in known], rng),
            "wrong_season": _one([season for season in wordings.seasons if season not in known], rng),
        }


def context_name(user_id: str, as_of: datetime, item_id: str | None) -> str:
    """What candidates of one context share: household and moment, and of explanations the item."""
    return f"{user_id}@{as_of.isoformat()}" + (f"/{item_id}" if item_id else "")


def make_judged(
    view: Dataset, index: CatalogIndex, households: Mapping[Split, int], seed: int, report: Callable[[str], None]
) -> Iterator[JudgedText]:
    """Judged tags and explanations of so many households a split, at one moment each; the same for the same seed.

    Args:
        view: what may be trained on.
        index: of the catalogue.
        households: how many of each split.
        seed: of all choices.
        report: called with a sentence on the progress.
    """
    maker = Maker(view, index, seed)
    for split, count in households.items():
        moments = maker.moments(split, count + 1)
        for number, (moment, other) in enumerate(pairwise(moments), 1):
            yield from maker.tags(*moment, *other)
            yield from maker.explanations(*moment, *other)
            if number % 10 == 0:
                report(f"{split}: {number} of {len(moments) - 1} households")


def grade_of(labels: Mapping[str, Label], complete: bool, kind: Subject) -> Grade | None:
    """The grade by the rule, where the labels that are known decide it clearly."""
    if not complete and "negative" not in labels.values():
        return None
    known = [
        DimensionLabel(dimension=name, label=label, evidence="", probability=None) for name, label in labels.items()
    ]
    grade = grade_labels(known, THRESHOLD)
    positive = list(labels.values()).count("positive")
    if kind == "explanations" and grade != "Bad" and CLEAR["Average"] < positive < CLEAR["Superior"]:
        return None
    return grade


def profile_lifts(view: Dataset) -> dict[tuple[str, str], float]:
    """By leaf and trait: how many times as often training households of that trait buy the leaf as others do.

    A lift that may be chance is left out: the ratio of the two shares must differ from 1 by `CERTAIN` standard errors
    of its logarithm (Katz).
    """
    users = view.users.filter(pl.col("profile").is_not_null())
    users = users.filter(pl.Series([split_of(user) == "train" for user in users["user_id"]], dtype=pl.Boolean))
    bought = (
        view.events_before(view.last_event)
        .filter(pl.col("action") == "purchase")
        .join(view.items.select("item_id", leaf=pl.col("category").list.last()), "item_id")
        .select("user_id", "leaf")
        .unique()
        .join(users.select("user_id", "profile"), "user_id")
    )
    lifts = {}
    for trait, pattern in TRAITS.items():
        has = pl.col("profile").str.contains(pattern)
        with_trait, without = users.filter(has).height, users.filter(~has).height
        counted = bought.group_by("leaf").agg(own=has.sum(), others=(~has).sum())
        for leaf, own, others in counted.filter(pl.col("own") > 0, pl.col("others") > 0).iter_rows():
            lift = (own / with_trait) / (others / without)
            error = math.sqrt(1 / own - 1 / with_trait + 1 / others - 1 / without)
            if error and abs(math.log(lift)) > CERTAIN * error:
                lifts[leaf, trait] = lift
    return lifts


@lru_cache(maxsize=4096)
def traits(profile: str | None) -> tuple[str, ...]:
    """Of `TRAITS` those that a profile has."""
    return tuple(trait for trait, pattern in TRAITS.items() if profile and re.search(pattern, profile))


def _with_what_is_shown(draft: Draft, task: JudgeTask) -> Draft | None:
    """The draft with evidence that its evaluators do see; None where what a label rests on is not shown to them."""
    shown = quotes(task.facts, task.subject).values()
    known = dict(draft.known)
    if draft.near is not None:
        lines = [fact.text for fact in task.facts if fact.name == "history" and f"({draft.near}; " in fact.text]
        if not lines:
            return None
        known["Relevance"] = (known["Relevance"][0], lines[0])
    return replace(draft, known=known) if all(evidence in shown for _, evidence in known.values()) else None


def _facts(task: ExplanationTask, purpose: str) -> Facts:
    leaf = task.item.category[-1]
    slots = {"item": leaf.lower(), "purpose": purpose}
    lines: dict[str, str] = {}
    _, named, size = task.item.title.rpartition(f"{leaf}, ")
    if named:
        slots["size"] = size
    bought = [line for line in task.own if line.action == "purchase"]
    if bought and sum(line.times for line in bought) > 1 and len(bought) == 1:
        slots["times"] = str(bought[0].times)
        lines["habit"] = f"the item itself: {bought[0].rhythm(task.as_of)}"
    others = [line for line in task.evidence if line.leaf and line.leaf != leaf and line.action == "purchase"]
    if others:
        slots["other"] = str(others[0].leaf).lower()
        lines["companion"] = f"{others[0].text} ({others[0].rhythm(task.as_of)})"
    for signal in task.signals:
        if signal.kind == "holiday" and "holiday" not in slots and " in " in signal.text:
            slots |= {"holiday": str(occasion_of(signal)), "ahead": f"in {signal.text.rpartition(' in ')[2]}"}
            lines["occasion"] = signal.text
        if signal.kind == "season":
            slots["season"] = str(occasion_of(signal))
            lines["season"] = signal.text
        if signal.kind == "trend" and leaf in signal.categories:
            lines["trend"] = signal.text
    return Facts(task, slots, lines)


def _with(base: Draft, source: str, sentence: str, labels: Mapping[str, Label], unknown: Sequence[str] = ()) -> Draft:
    """The base with one more sentence, the fault; what is not known any more is left out."""
    sentence = _capital(sentence)
    lost = {"Relevance", "Informativeness", "Attractiveness", "Timeliness", *unknown} - labels.keys()
    kept = {dimension: known for dimension, known in base.known.items() if dimension not in lost}
    return Draft(source, f"{base.text} {sentence}", kept | {name: (label, sentence) for name, label in labels.items()})


def _broken(base: Draft, rng: Generator) -> Draft:
    """The base as no sentence: words out of order, cut off, or repeated."""
    words = base.text.split()
    way = int(rng.integers(3))
    if way == 0:
        words = [words[place] for place in rng.permutation(len(words))]
    elif way == 1:
        words = words[: max(4, len(words) // 2)]
        words[-1] = words[-1].rstrip(".!?,")[: max(2, len(words[-1]) // 2)]
    else:
        start = int(rng.integers(max(1, len(words) - 3)))
        words = words[: start + 3] + words[start : start + 3] * 3 + words[start + 3 :]
    text = " ".join(words)
    return Draft("broken", text, {"Clarity": ("negative", subject_lines(text)[0]["text"])})


def _halves(leaf: str) -> dict[str, str]:
    """`{core}` and `{rest}` of a leaf of several words."""
    *rest, core = tag_text(leaf).split()
    return {"core": core, "rest": " ".join(rest)} if rest else {}


def _fill(texts: Sequence[str], slots: Mapping[str, str], rng: Generator) -> str:
    """One of the texts, its slots filled; one without a value stays as it is."""
    text = _one(texts, rng)
    return re.sub(r"\{(\w+)\}", lambda match: slots.get(match[1], match[0]), text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _one(values: Sequence[T], rng: Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _some(values: Sequence[str], count: int, rng: Generator) -> list[str]:
    """So many of the values, or as many as there are, in random order."""
    return [values[place] for place in rng.permutation(len(values))[:count]]
