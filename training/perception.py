"""Self-perception pairs (section 2 of the report): questions about one item or query, and what the catalogue answers.

Entities of held-out leaves, and some of the others, are in no pair that is trained on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import yaml
from langchain_core.messages import BaseMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.hybrid import Question
from eval.splits import SEED, TRAIN_END
from prompts.template import ListLines, Prompt, clean
from tools.dataset import Dataset
from tools.errors import DatasetError
from tools.loading import load_once
from tools.purchases import neighbours, purchases_before
from tools.retrieval import leaf_paths
from tools.shelf import tag_text
from training.needs import load_needs

PERCEPTION_FILE = Path(__file__).parent / "perception.yaml"
SEASONS = (*("winter",) * 2, *("spring",) * 3, *("summer",) * 3, *("autumn",) * 3, "winter")
"""Of the months from January on."""
SEASON_LIFT = 1.5
"""How much more often than all else a leaf is bought in a season that is its own."""
SEASON_LEAST = 30
"""Purchases of a leaf from which its seasons are told."""
ALL_YEAR = "all year"
BOUGHT_WITHIN = timedelta(days=1)
"""A purchase so soon after a query was what it searched for."""
CARD = ("department", "category", "leaf", "brand", "size", "use", "season")
NEW_LEAF, OF_QUERY = "_of_new_leaf", "_of_query"
"""How the tasks about items of held-out leaves, and about queries, end."""
ITEM = "{{entity item}}"
TITLE_LIMIT = 10_000
"""Longest title of a corpus in characters."""

ONE_PATH = ("department", "category", "leaf", "use")
"""Tasks whose answers follow from an item's place in the catalogue."""
MEASURED = {
    "department": True,
    "category": True,
    "leaf": True,
    "brand": True,
    "size": False,
    "use": True,
    "season": True,
    "bought_with": True,
    "title": False,
    "translation": False,
}
"""Tasks that accuracy is told of, and whether they are multiple choice."""

Split = Literal["train", "validation", "test", "test_leaf"]
"""`test_leaf` has the entities of leaves that no trained pair is about, `test` others of known leaves."""


@dataclass(frozen=True)
class Pair:
    """A question about an entity, and its answer."""

    task: str
    wording: int
    entity: str
    answer: str


class Task(BaseModel):
    """One family of questions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0)
    answer: str
    questions: list[Annotated[str, Field(pattern=r"^[^{]*\{\{entity item\}\}[^{]*$")]] = Field(min_length=1)


class Perception(BaseModel):
    """`perception.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Annotated[str, Field(pattern=r"\{\{examples\}\}")]
    examples: int = Field(ge=0)
    alignment: int = Field(ge=0)
    """How often each aligned prompt is seen."""
    tasks: dict[str, Task] = Field(min_length=1)

    def ask(self, pair: Pair, examples: Sequence[Pair], hybrid: bool) -> list[BaseMessage]:
        """The messages of a question, after answered ones of its task, whose entities are always text."""
        prompt = Prompt(
            agent="perception",
            version=pair.task,
            description=pair.task,
            fields=("examples", "item"),
            lines={"examples": ListLines(each="{{question}} {{answer}}", none="")},
            value_limit=TITLE_LIMIT,
            system=self.system,
            user=self._question(pair),
        )
        answered = [
            {
                "question": self._question(one).replace(ITEM, one.entity),
                "answer": json.dumps(one.answer, ensure_ascii=False),
            }
            for one in examples
        ]
        return prompt.render({"item": pair.entity, "examples": answered}, hybrid)

    def _question(self, pair: Pair) -> str:
        questions = self.tasks[pair.task].questions
        return questions[pair.wording % len(questions)]


@lru_cache(maxsize=4)
def load_perception(path: Path = PERCEPTION_FILE) -> Perception:
    """Read and validate the tasks.

    Raises:
        DatasetError: the file is missing or no mixture.
    """
    try:
        return Perception.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DatasetError(f"{path} is no mixture of tasks such as {PERCEPTION_FILE.name}: {error}") from error


def split_of(title: str, leaf: str) -> Split:
    """To which split a title belongs: by a hash, so that new items don't move the others."""
    by_leaf, by_title = zlib.crc32(f"leaf:{leaf}".encode()) % 100, zlib.crc32(f"title:{title}".encode()) % 100
    if by_leaf < 5:
        return "test_leaf"
    return "test" if by_title < 10 else "validation" if by_title < 13 else "train"


@load_once(maxsize=4)
def known_facts(dataset: Dataset, corpus: Path | None = None) -> dict[str, dict[str, str]]:
    """Of each entity what the catalogue and the purchases before `TRAIN_END` tell; what is not known is missing.

    `department`, `category`, `leaf`; `use` (the need that its category belongs to), `season` (in which its leaf is
    bought `SEASON_LIFT` times as often as other things, or all year), `bought_with` (the leaf of another category that
    most of its households bought for their number), `card`, several of these as one text. An item has a `title`,
    `brand` and `size`, a query the text `query`: the leaf of a query is what was bought after it most often, and names
    of leaves stand beside them, since a data set may have no query. A title of a `corpus`, see `read_titles`, has its
    translation `en`.
    """
    paths = {path[-1]: path for path in leaf_paths(dataset)}
    needs = load_needs().by_category()
    seasons, companions = _seasons(dataset), _companions(dataset)

    def known(leaf: str, **own: str | None) -> dict[str, str]:
        path = paths[leaf]
        need = needs.get(path[1]) if len(path) > 2 else None
        told = {
            **own,
            "department": path[0],
            "category": path[1] if len(path) > 2 else None,
            "leaf": leaf,
            "use": need.names[0] if need else None,
            "season": seasons.get(leaf),
            "bought_with": companions.get(leaf),
        }
        found = {name: str(value) for name, value in told.items() if value}
        return {**found, "card": "; ".join(found[name] for name in CARD if name in found)}

    facts = {query: known(leaf, query=query) for query, leaf in _queries(dataset, list(paths)).items()}
    rows = dataset.items.sort("item_id").unique("title", keep="first", maintain_order=True).sort("title")
    for row in rows.iter_rows(named=True):
        if title := clean(row["title"]):
            size = json.loads(row["attributes"]).get("size") if row["attributes"] else None
            facts[title] = known(row["category"][-1], title=title, brand=row["brand"], size=size)
    for title, own in (read_titles(corpus) if corpus else {}).items():
        facts[title] = facts.get(title, {}) | own
    return facts


def held_out(facts: Mapping[str, Mapping[str, str]], *splits: Split) -> set[str]:
    """Entities of some splits."""
    return {text for text, known in facts.items() if split_of(text, known.get("leaf", text)) in splits}


def perception_pairs(
    facts: Mapping[str, Mapping[str, str]], perception: Perception, split: Split, count: int, seed: int
) -> list[Pair]:
    """`count` pairs of a split, the tasks by their shares, each wording as often as the others.

    Args:
        facts: see `known_facts`.
        perception: tasks.
        split: whose titles.
        count: how many, about: shares are rounded.
        seed: of the draw; titles are drawn without replacement until there are no more.
    """
    rng = np.random.default_rng(seed)
    own = held_out(facts, split)
    titles = [title for title in facts if title in own]
    tasks = {name: task for name, task in perception.tasks.items() if any(task.answer in facts[t] for t in titles)}
    whole = sum(task.share for task in tasks.values())
    pairs = []
    for name, task in tasks.items():
        able = [title for title in titles if task.answer in facts[title]]
        wanted = round(count * task.share / whole)
        drawn = np.concatenate([rng.permutation(len(able)) for _ in range(-(-wanted // len(able)) or 1)])[:wanted]
        pairs += [Pair(name, number, able[row], facts[able[row]][task.answer]) for number, row in enumerate(drawn)]
    return pairs


def answered_examples(
    facts: Mapping[str, Mapping[str, str]], perception: Perception, seed: int = SEED
) -> dict[str, list[Pair]]:
    """Of each task `perception.examples` trained pairs with distinct answers, which its questions begin with.

    They show the model what an answer looks like, so that an adaptor's vectors need not.
    """
    found: dict[str, list[Pair]] = {name: [] for name in perception.tasks}
    for pair in perception_pairs(facts, perception, "train", 100 * len(found), seed):
        own = found[pair.task]
        if len(own) < perception.examples and pair.answer not in {one.answer for one in own}:
            own.append(pair)
    return found


def held_out_questions(
    dataset: Dataset, perception: Perception, count: int, corpus: Path | None = None, seed: int = SEED
) -> list[Question]:
    """`count` questions a task and held-out split, about entities that no trained pair is about.

    Tasks with few answers are multiple choice. Where an item stands in the catalogue is asked only of titles that stand
    in one place, see `_contradicted`. A split's name follows its task's for queries and for items of leaves
    that were held out whole: `department`, `department_of_query`, `department_of_new_leaf`.
    """
    facts = known_facts(dataset, corpus)
    known_leaf, new_leaf = held_out(facts, "test"), held_out(facts, "test_leaf")
    # Embedders may not tell capitals apart: `Celery` was seen where `celery` was.
    seen = {text.casefold() for text in facts.keys() - known_leaf - new_leaf}
    items = [text for text, known in facts.items() if "query" not in known and text.casefold() not in seen]
    queries = [text for text, known in facts.items() if "query" in known and text.casefold() not in seen]
    splits = {
        "": [text for text in items if text in known_leaf],
        NEW_LEAF: [text for text in items if text in new_leaf],
        OF_QUERY: [text for text in queries if text in known_leaf or text in new_leaf],
    }
    rng, examples = np.random.default_rng(seed), answered_examples(facts, perception)
    contradicted = _contradicted(dataset)
    questions = []
    for name, task in perception.tasks.items():
        if name not in MEASURED:
            continue
        choices = tuple(sorted({known[task.answer] for known in facts.values() if task.answer in known}))
        for suffix, texts in splits.items():
            able = [text for text in texts if task.answer in facts[text]]
            if name in ONE_PATH:
                able = [text for text in able if text not in contradicted]
            for number, row in enumerate(rng.permutation(len(able))[:count]):
                pair = Pair(name, number, able[row], facts[able[row]][task.answer])
                text, hybrid = (perception.ask(pair, examples[name], way) for way in (False, True))
                asked_of = choices if MEASURED[name] else ()
                questions.append(Question(f"{name}{suffix}", pair.entity, text, hybrid, pair.answer, asked_of))
    return questions


def read_titles(path: Path) -> dict[str, dict[str, str]]:
    """A corpus of titles in two languages as facts: of each Chinese title its English one.

    Raises:
        DatasetError: there is no such file, or a line is no `{"zh": ..., "en": ...}`, or one of the two is empty.
    """
    facts = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            pair = _TitlePair.model_validate_json(line)
        except ValidationError as error:
            raise DatasetError(
                f'{path}, line {number}: expected {{"zh": "...", "en": "..."}} with nothing else, found {line[:120]!r}'
            ) from error
        if clean(pair.zh, TITLE_LIMIT) != pair.zh:
            raise DatasetError(
                f"{path}, line {number}: a prompt would change or cut this title; expected one line of {TITLE_LIMIT} "
                f"characters at most, without control characters, found {pair.zh[:120]!r}"
            )
        facts[pair.zh] = {"en": pair.en}
    return facts


class _TitlePair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    zh: str = Field(min_length=1)
    en: str = Field(min_length=1)


def _lines(path: Path) -> Iterator[str]:
    """By line ends alone: a title may hold what else Python takes for one."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error}") from error


def _contradicted(dataset: Dataset) -> set[str]:
    """Titles of items with several paths, or with another path than the commonest one of their leaf, which is told."""
    commonest = {path[-1]: path for path in leaf_paths(dataset)}
    paths = dataset.items.group_by("title").agg(pl.col("category").unique())
    return {clean(title) for title, own in paths.iter_rows() if len(own) > 1 or own[0] != commonest[own[0][-1]]}


def _queries(dataset: Dataset, leaves: Sequence[str]) -> dict[str, str]:
    """Texts that a shop is searched by, and the leaf that each is about."""
    events = dataset.events_before(TRAIN_END).sort("timestamp")
    searches = events.filter(pl.col("action") == "search").select("user_id", "timestamp", "query")
    baskets = purchases_before(dataset, TRAIN_END).group_by("user_id", "timestamp").agg(pl.col("leaf").unique())
    followed = (
        searches.join_asof(
            baskets.sort("timestamp"),
            on="timestamp",
            by="user_id",
            strategy="forward",
            tolerance=BOUGHT_WITHIN,
            check_sortedness=False,  # both are sorted, which can't be checked by user
        )
        .explode("leaf")
        .drop_nulls("leaf")
        .group_by("query", "leaf")
        .len()
        .sort("query", "len", "leaf", descending=[False, True, False])
        .unique("query", keep="first", maintain_order=True)
    )
    found = {tag_text(leaf): leaf for leaf in leaves}
    return found | {
        text: leaf for query, leaf in followed.select("query", "leaf").iter_rows() if (text := clean(query))
    }


def _seasons(dataset: Dataset) -> dict[str, str]:
    """The season of each leaf with enough purchases."""
    months = purchases_before(dataset, TRAIN_END).group_by("leaf", month=pl.col("timestamp").dt.month()).len()
    counts: dict[str, dict[str, int]] = {}
    for leaf, month, count in months.iter_rows():
        own = counts.setdefault(leaf, {})
        own[SEASONS[month - 1]] = own.get(SEASONS[month - 1], 0) + count
    names: Sequence[str] = list(dict.fromkeys(SEASONS))
    table = np.array([[own.get(name, 0) for name in names] for own in counts.values()], dtype=np.float64)
    usual = table.sum(axis=0) / table.sum()
    found = {}
    for leaf, row in zip(counts, table, strict=True):
        if row.sum() >= SEASON_LEAST:
            lift = row / row.sum() / usual
            found[leaf] = names[int(lift.argmax())] if lift.max() >= SEASON_LIFT else ALL_YEAR
    return found


def _companions(dataset: Dataset) -> dict[str, str]:
    """For each leaf the one of another category with the highest cosine of their households."""
    near = neighbours(dataset, TRAIN_END)
    found = {}
    for leaf, row in near.row.items():
        one = np.zeros(len(near.leaves), dtype=np.float32)
        one[row] = 1.0
        for other in np.argsort(-near.close(one), kind="stable"):
            if near.category[near.leaves[other]] != near.category[leaf]:
                found[leaf] = near.leaves[other]
                break
    return found
