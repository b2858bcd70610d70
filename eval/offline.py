"""The offline evaluation: every model asked about the same households, and the figures of what came.

What a model lists is kept in `OUT/lists`, so that an interrupted run goes on and a repeated one fits nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path

import numpy as np

from eval.baselines import Recommender
from eval.baskets import LEVELS, Level, LevelData, read_level
from eval.metrics import Estimate, estimate
from eval.retrieval import (
    DEPTH,
    AtLevel,
    Question,
    Ranking,
    categories_of_leaves,
    classical,
    hit_rates,
    questions,
    rank,
)
from eval.splits import (
    LEAST_BASKETS,
    SEED,
    TRAIN_END,
    VALIDATION_BASKET,
    WEEK_DAYS,
    WEEKS,
    Case,
    basket_cases,
    evaluation_cases,
    week_cases,
)
from tools.dataset import Dataset
from tools.embedding import Embeddings
from tools.errors import DatasetError, OutputError
from tools.towers import leaf_of_titles

KS = (10, 30)
OURS = "v2_combined"
CHANNELS = {"cognitive": "v2_cognitive", "habit": "own_recency", "towers": "towers"}
"""The model whose list stands for each channel."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """One run: a data set, the households, and the directory of its results."""

    dataset: Dataset
    out: Path
    users: int | None
    """How many of the evaluation households the models are compared on; None for all."""
    levels: Mapping[Level, LevelData]

    def cases(self, split: str, users: int | None) -> list[Case]:
        """The first `users` households of a split; None for all."""
        if split == "test":
            return evaluation_cases(self.dataset, users)
        return week_cases(self.dataset, WEEKS[split], users)

    def questions(self, split: str, level: Level, cases: Sequence[Case]) -> list[Question]:
        """The cases as questions at a level."""
        return questions(self.levels[level], cases, None if split == "test" else WEEK_DAYS)

    def at_level(self, of_leaves: Recommender, level: Level) -> Recommender:
        """What scores leaves, at a level."""
        if level == "leaf":
            return of_leaves
        leaves, data = self.levels["leaf"], self.levels[level]
        if level == "category":
            return AtLevel(of_leaves, leaves, data, categories_of_leaves(self.dataset, data))
        return AtLevel(of_leaves, leaves, data, leaf_of_titles(self.dataset)[1])


def open_evaluation(dataset: Dataset, out: Path, users: int | None) -> Evaluation:
    """Begin a run, or go on with one that is the same.

    Raises:
        OutputError: the directory has another run's results.
        DatasetError: no household can be asked about, or none that settings can be chosen on.
    """
    levels = {level: read_level(dataset, level) for level in LEVELS}
    entities = json.dumps([levels[level].entities for level in LEVELS])
    identity = {
        "dataset": dataset.info.name,
        "entities": hashlib.sha256(entities.encode()).hexdigest()[:16],
        "events": dataset.events_before(dataset.last_event + timedelta(seconds=1)).height,
        "train_end": TRAIN_END.isoformat(),
        "depth": DEPTH,
    }
    path = out / "run.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != identity:
            keys = ", ".join(key for key in identity if found.get(key) != identity[key])
            raise OutputError(f"{out} has results of another run ({keys} differ): give another --out, or remove it")
    run = Evaluation(dataset, out, users, levels)
    validation = basket_cases(dataset, VALIDATION_BASKET, 1, SEED)
    for what, cases in (("last", run.cases("test", 1)), ("last but one", validation)):
        if not cases:
            raise DatasetError(
                f"{dataset.directory} has no household whose {what} basket lies on or after {TRAIN_END:%Y-%m-%d} with "
                f"purchases before it, out of {LEAST_BASKETS} baskets or more: there is nothing to measure on"
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    return run


def list_classical(run: Evaluation, report: Report) -> None:
    """Fit every classical recommender whose lists are not there yet, and ask it about all households.

    At every level before their last basket, and about leaves at the start of the weeks.
    """
    everyone = run.cases("test", None)
    for level in LEVELS:
        for name, method in classical(run.dataset, run.levels[level], report).items():
            if has_lists(run, name, "test", level, method.key):
                continue
            report(f"{level}: fitting {name}")
            fitted = method.fit()
            _note_settings(run, name, level, fitted.settings)
            if level == "leaf":
                for week in WEEKS:
                    keep_lists(run, name, week, level, fitted.model, run.cases(week, None), method.key)
                if name == "sasrec":
                    for other in LEVELS[1:]:
                        keep_lists(run, name, "test", other, run.at_level(fitted.model, other), everyone, method.key)
            keep_lists(run, name, "test", level, fitted.model, everyone, method.key)


def keep_lists(
    run: Evaluation, name: str, split: str, level: Level, model: Recommender, cases: Sequence[Case], key: str
) -> None:
    """Ask a model about the cases, the first of a split, and write what it lists and what made it."""
    asked = run.questions(split, level, cases)
    ranking = rank(model, run.levels[level], asked)
    path = _path(run, name, split, level)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    users = np.array([question.user_id for question in asked])
    np.savez_compressed(partial, users=users, all=ranking.all, new=ranking.new, key=key)
    partial.replace(path)


def drop_lists(run: Evaluation, name: str, split: str) -> None:
    """Remove a model's lists of a split, if there are any."""
    for level in LEVELS:
        _path(run, name, split, level).unlink(missing_ok=True)


def has_lists(run: Evaluation, name: str, split: str, level: Level, key: str) -> bool:
    """Whether they are there, made by what the key says."""
    path = _path(run, name, split, level)
    if not path.exists():
        return False
    with np.load(path) as kept:
        return str(kept["key"]) == key


def read_lists(run: Evaluation, name: str, split: str, level: Level, cases: Sequence[Case]) -> Ranking | None:
    """What a model lists for the first cases of a split; None if it was not asked about all of them.

    Raises:
        OutputError: it was asked about other households.
    """
    path = _path(run, name, split, level)
    with np.load(path) as kept:
        users = kept["users"].tolist()
        if len(users) < len(cases):
            return None
        if users[: len(cases)] != [case.user_id for case in cases]:
            raise OutputError(f"{path} is about other households; remove it and run the same again")
        return Ranking(kept["all"][: len(cases)], kept["new"][: len(cases)])


def listed_models(run: Evaluation, split: str, level: Level) -> list[str]:
    """The models that have lists."""
    found = sorted((run.out / "lists").glob(f"{split}.{level}.*.npz"))
    return [path.name.split(".")[2] for path in found if not path.name.endswith(".partial.npz")]


def figures(run: Evaluation) -> dict[str, Estimate]:
    """Every figure that follows from the lists, by its key in `metrics.json`.

    `models` are of the run's households, `everyone` of all of them, for the models that were asked about all.
    """
    compared = run.cases("test", run.users)
    return {
        **_of_levels(run, compared, "models"),
        **_of_levels(run, run.cases("test", None), "everyone"),
        **_gains(run, compared),
        **_of_weeks(run),
        **_of_channels(run, compared),
    }


def list_figures(run: Evaluation, leaf_vectors: Embeddings) -> dict[str, Estimate]:
    """What the lists of 30 leaves are like: how unlike their entries are, and how many are of a new category.

    Args:
        run: the evaluation.
        leaf_vectors: unit vectors of the leaves' names, (leaves, d).

    Returns:
        `lists.<model>.diversity`: mean of 1 - cosine over pairs of leaves; `lists.<model>.ner`: share of leaves whose
        category the household never bought from (novelty exposure rate).
    """
    cases = run.cases("test", run.users)
    category_of = categories_of_leaves(run.dataset, run.levels["category"])
    asked = run.questions("test", "leaf", cases)
    values = {}
    for name in listed_models(run, "test", "leaf"):
        if ranking := read_lists(run, name, "test", "leaf", cases):
            shown = [listed[listed >= 0] for listed in ranking.all]
            values[f"lists.{name}.diversity"] = estimate(
                [_diversity(leaf_vectors[listed]) for listed in shown if len(listed) > 1]
            )
            values[f"lists.{name}.ner"] = estimate(
                [
                    float((~np.isin(category_of[listed], category_of[question.bought])).mean())
                    for question, listed in zip(asked, shown, strict=True)
                    if len(listed)
                ]
            )
    return values


def _diversity(vectors: Embeddings) -> float:
    """Mean of 1 - cosine over all pairs of unit vectors (n, d)."""
    count = len(vectors)
    total = float(np.square(vectors.sum(axis=0)).sum())  # all ordered pairs, and n ones of each with itself
    return 1 - (total - count) / (count * (count - 1))


def write_metrics(path: Path, values: Mapping[str, Estimate]) -> None:
    """`metrics.json`: every figure with n, mean, low and high; one of no household is left out, JSON has no NaN."""
    document = {
        key: {"n": value.n, **{part: round(getattr(value, part), 5) for part in ("mean", "low", "high")}}
        for key, value in sorted(values.items())
        if value.n
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_metrics(path: Path) -> dict[str, Estimate]:
    """The figures of a `metrics.json`.

    Raises:
        OutputError: it is missing, or is none.
    """
    try:
        return {key: Estimate(**value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} has no figures of `recgpt eval all`: {error!r}") from error


def _of_levels(run: Evaluation, cases: Sequence[Case], prefix: str) -> dict[str, Estimate]:
    """HR of each model that was asked about these cases."""
    values: dict[str, Estimate] = {}
    for level in LEVELS:
        asked = run.questions("test", level, cases)
        for name in listed_models(run, "test", level):
            if ranking := read_lists(run, name, "test", level, cases):
                for kind, k in product(("all", "new"), KS):
                    rates = hit_rates(ranking, asked, k, kind == "new")
                    values[f"{prefix}.{name}.{level}.{kind}.hr@{k}"] = estimate(known(rates))
    return values


def _gains(run: Evaluation, cases: Sequence[Case]) -> dict[str, Estimate]:
    """By how much the combined system hits more than each other model, household by household: leaves, HR@30."""
    asked = run.questions("test", "leaf", cases)
    rates = {
        (name, kind): hit_rates(ranking, asked, DEPTH, kind == "new")
        for name in listed_models(run, "test", "leaf")
        if (ranking := read_lists(run, name, "test", "leaf", cases))
        for kind in ("all", "new")
    }
    values = {}
    for (name, kind), theirs in rates.items():
        if name != OURS and (OURS, kind) in rates:
            pairs = zip(rates[OURS, kind], theirs, strict=True)
            gains = [ours - other for ours, other in pairs if ours is not None and other is not None]
            values[f"gain.{name}.leaf.{kind}.hr@{DEPTH}"] = estimate(gains)
    return values


def _of_weeks(run: Evaluation) -> dict[str, Estimate]:
    """HR@30 of new leaves in each week.

    `weeks` are of the first households, those that every model was asked about; `weeks_everyone` of each model over all
    the households that it was asked about.
    """
    values = {}
    for week in WEEKS:
        asked_about = {name: _asked_about(run, name, week) for name in listed_models(run, week, "leaf")}
        for name, own in asked_about.items():
            for prefix, count in (("weeks", min(asked_about.values())), ("weeks_everyone", own)):
                cases = run.cases(week, count)
                if ranking := read_lists(run, name, week, "leaf", cases):
                    rates = hit_rates(ranking, run.questions(week, "leaf", cases), DEPTH, new=True)
                    values[f"{prefix}.{week}.{name}.leaf.new.hr@{DEPTH}"] = estimate(known(rates))
    return values


def _asked_about(run: Evaluation, name: str, split: str) -> int:
    with np.load(_path(run, name, split, "leaf")) as kept:
        return len(kept["users"])


def _of_channels(run: Evaluation, cases: Sequence[Case]) -> dict[str, Estimate]:
    """Share of the basket that a channel's first 30 leaves have and no other channel's; and how far two overlap.

    As in `tools.ranker.candidates`, habit has what was bought before alone, and the towers what was not. Of tags there
    are more than a page's final ones: the arbiter's picks are followed by what it left.
    """
    there = listed_models(run, "test", "leaf")
    lists = {
        channel: ranking.new if channel == "towers" else ranking.all
        for channel, name in CHANNELS.items()
        if name in there and (ranking := read_lists(run, name, "test", "leaf", cases))
    }
    if len(lists) < len(CHANNELS):
        return {}
    asked = run.questions("test", "leaf", cases)
    bought = [np.isin(listed, question.bought) for question, listed in zip(asked, lists["habit"], strict=True)]
    lists["habit"] = np.where(bought, lists["habit"], -1)  # that list goes on with what is popular
    values = {}
    for channel, own in lists.items():
        others = np.concatenate([listed for other, listed in lists.items() if other != channel], axis=1)
        shares = [
            float((np.isin(question.target, mine) & ~np.isin(question.target, theirs)).mean())
            for question, mine, theirs in zip(asked, own, others, strict=True)
        ]
        values[f"channels.{channel}.exclusive_recall"] = estimate(shares)
    for first, second in combinations(CHANNELS, 2):
        pairs = zip(lists[first], lists[second], strict=True)
        overlaps = [len(np.intersect1d(a[a >= 0], b[b >= 0])) / DEPTH for a, b in pairs]
        values[f"channels.{first}+{second}.overlap"] = estimate(overlaps)
    return values


def known(rates: Sequence[float | None]) -> list[float]:
    """Without the households that nothing was asked of."""
    return [rate for rate in rates if rate is not None]


def _path(run: Evaluation, name: str, split: str, level: Level) -> Path:
    return run.out / "lists" / f"{split}.{level}.{name}.npz"


def _note_settings(run: Evaluation, name: str, level: Level, settings: object) -> None:
    """Which settings were chosen, as a line a model."""
    with (run.out / "settings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"model": name, "level": level, "settings": repr(settings)}) + "\n")
