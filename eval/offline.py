"""The offline evaluation: every model asked about the same households, and the figures of what came.

What a model lists is kept in `OUT/lists`, so that an interrupted run goes on and a repeated one fits nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
from eval.splits import TRAIN_END, WEEK_DAYS, WEEKS, Case, evaluation_cases, week_cases
from tools.dataset import Dataset
from tools.errors import OutputError
from tools.towers import leaf_of_titles

KS = (10, 30)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """One run: a data set, the households, and the directory of its results."""

    dataset: Dataset
    out: Path
    users: int | None
    """How many of the evaluation households; None for all."""
    levels: Mapping[Level, LevelData]

    def cases(self, split: str, users: int | None = None) -> list[Case]:
        """The households of a split, at most `users` of them."""
        wanted = self.users if users is None else users
        if split == "test":
            return evaluation_cases(self.dataset, wanted)
        return week_cases(self.dataset, WEEKS[split], wanted)

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
    """
    identity = {
        "dataset": dataset.info.name,
        "events": dataset.events_before(dataset.last_event).height + 1,
        "train_end": TRAIN_END.isoformat(),
        "users": users,
        "depth": DEPTH,
    }
    path = out / "run.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != identity:
            keys = ", ".join(key for key in identity if found.get(key) != identity[key])
            raise OutputError(f"{out} has results of another run ({keys} differ): give another --out, or remove it")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    return Evaluation(dataset, out, users, {level: read_level(dataset, level) for level in LEVELS})


def list_classical(run: Evaluation, report: Report) -> None:
    """Fit and ask every classical recommender whose lists are not there yet: all levels, and leaves in the weeks."""
    for level in LEVELS:
        for name, fit in classical(run.dataset, run.levels[level], report).items():
            if has_lists(run, name, "test", level):
                continue
            report(f"{level}: fitting {name}")
            fitted = fit()
            _note_settings(run, name, level, fitted.settings)
            if level == "leaf":
                for week in WEEKS:
                    keep_lists(run, name, week, level, fitted.model)
                if name == "sasrec":
                    for other in LEVELS[1:]:
                        keep_lists(run, name, "test", other, run.at_level(fitted.model, other))
            keep_lists(run, name, "test", level, fitted.model)


def keep_lists(
    run: Evaluation, name: str, split: str, level: Level, model: Recommender, cases: Sequence[Case] | None = None
) -> None:
    """Ask a model about the cases of a split, and write what it lists."""
    asked = run.questions(split, level, run.cases(split) if cases is None else cases)
    ranking = rank(model, run.levels[level], asked)
    path = _path(run, name, split, level)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    users = np.array([question.user_id for question in asked])
    np.savez_compressed(partial, users=users, all=ranking.all, new=ranking.new)
    partial.replace(path)


def has_lists(run: Evaluation, name: str, split: str, level: Level) -> bool:
    """Whether they are there."""
    return _path(run, name, split, level).exists()


def read_lists(run: Evaluation, name: str, split: str, level: Level) -> tuple[list[str], Ranking]:
    """The households that a model was asked about, and its lists."""
    with np.load(_path(run, name, split, level)) as kept:
        return kept["users"].tolist(), Ranking(kept["all"], kept["new"])


def listed_models(run: Evaluation, split: str, level: Level) -> list[str]:
    """The models that have lists."""
    found = sorted((run.out / "lists").glob(f"{split}.{level}.*.npz"))
    return [path.name.split(".")[2] for path in found if not path.name.endswith(".partial.npz")]


def figures(run: Evaluation) -> dict[str, Estimate]:
    """Every figure that follows from the lists, by its key in `metrics.json`."""
    return {**_of_levels(run), **_of_weeks(run), **_of_channels(run)}


def write_metrics(path: Path, values: Mapping[str, Estimate]) -> None:
    """`metrics.json`: every figure with n, mean, low and high."""
    document = {
        key: {"n": value.n, **{part: round(getattr(value, part), 5) for part in ("mean", "low", "high")}}
        for key, value in sorted(values.items())
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _of_levels(run: Evaluation) -> dict[str, Estimate]:
    """HR of each model, and by how much the combined system differs from each."""
    values: dict[str, Estimate] = {}
    cases = run.cases("test")
    for level in LEVELS:
        asked = run.questions("test", level, cases)
        rates: dict[tuple[str, str, int], list[float | None]] = {}
        for name in listed_models(run, "test", level):
            _, ranking = read_lists(run, name, "test", level)
            for kind, k in ((kind, k) for kind in ("all", "new") for k in KS):
                rates[name, kind, k] = hit_rates(ranking, asked, k, kind == "new")
                values[f"models.{name}.{level}.{kind}.hr@{k}"] = estimate(_known(rates[name, kind, k]))
        for (name, kind, k), other in rates.items():
            if name != "v2_combined" and ("v2_combined", kind, k) in rates:
                pairs = zip(rates["v2_combined", kind, k], other, strict=True)
                gains = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
                values[f"paired.v2_combined-{name}.{level}.{kind}.hr@{k}"] = estimate(gains)
    return values


def _of_weeks(run: Evaluation) -> dict[str, Estimate]:
    """HR@30 of new leaves in each week; agents may have been asked about the first households only."""
    values = {}
    for week in WEEKS:
        for name in listed_models(run, week, "leaf"):
            users, ranking = read_lists(run, name, week, "leaf")
            asked = run.questions(week, "leaf", run.cases(week)[: len(users)])
            values[f"weeks.{week}.{name}.leaf.new.hr@{DEPTH}"] = estimate(
                _known(hit_rates(ranking, asked, DEPTH, True))
            )
    return values


CHANNELS = {"cognitive": "v2_cognitive", "habit": "own_recency", "towers": "towers"}
"""Each channel's own list."""


def _of_channels(run: Evaluation) -> dict[str, Estimate]:
    """Share of the basket that a channel's first 30 leaves have and no other channel's."""
    there = [name for name in CHANNELS.values() if has_lists(run, name, "test", "leaf")]
    if len(there) < len(CHANNELS):
        return {}
    asked = run.questions("test", "leaf", run.cases("test"))
    lists = {channel: read_lists(run, name, "test", "leaf")[1].all for channel, name in CHANNELS.items()}
    values = {}
    for channel, own in lists.items():
        others = np.concatenate([listed for other, listed in lists.items() if other != channel], axis=1)
        shares = [
            float((np.isin(question.target, mine) & ~np.isin(question.target, theirs)).mean())
            for question, mine, theirs in zip(asked, own, others, strict=True)
        ]
        values[f"channels.{channel}.exclusive_recall"] = estimate(shares)
    for first, second in combinations(CHANNELS, 2):
        overlaps = [
            len(np.intersect1d(a[a >= 0], b[b >= 0])) / DEPTH for a, b in zip(lists[first], lists[second], strict=True)
        ]
        values[f"channels.{first}+{second}.overlap"] = estimate(overlaps)
    return values


def _known(rates: Sequence[float | None]) -> list[float]:
    return [rate for rate in rates if rate is not None]


def _path(run: Evaluation, name: str, split: str, level: Level) -> Path:
    return run.out / "lists" / f"{split}.{level}.{name}.npz"


def _note_settings(run: Evaluation, name: str, level: Level, settings: object) -> None:
    """Which settings were chosen, as a line a model."""
    with (run.out / "settings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"model": name, "level": level, "settings": repr(settings)}) + "\n")
