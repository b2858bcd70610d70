"""What training is worth: V1, the untuned base and the tuned policies before the same baskets of the same households.

An arm is a model behind V1's routes (`v1`) or V2's agents (all others). Its runs are those of `eval.tags`; the reward
model's scores of their final tags are kept beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path

import numpy as np
from langchain_core.messages import BaseMessage
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from agents.calls import gather_all
from agents.judging import reward_messages, tag_judge_tasks, whole_household
from eval.lines import read_json_lines
from eval.metrics import Estimate, estimate, hit_rate_at_k, relative
from eval.offline import known, read_metrics
from eval.page import BLUE, GREEN, Table, draw_bars, list_of, svg_of, write_page
from eval.splits import SEED, VALIDATION_BASKET, WEEKS, Case, basket_cases, evaluation_cases
from eval.tags import LIST, TagRun, ranked_leaves
from tools.dataset import Dataset
from tools.embedding import Embedder, Embeddings
from tools.errors import DatasetError, OutputError
from tools.llm import Endpoint
from tools.retrieval import CatalogIndex
from tools.scoring import score

ARMS = ("v1", "base", "sft", "grpo_sum", "grpo_crs", "crs_pointwise", "crs_listwise")
"""V1; V2 untuned, tuned on examples, and by rewards: summed, constrained; constrained, by each reward model."""
PAIRS = (("sft", "base"), ("grpo_crs", "sft"), ("grpo_crs", "grpo_sum"), ("crs_listwise", "crs_pointwise"))
"""An arm and the one that it is compared with, beside the best and V1."""
SPLITS = ("test", "validation")
HITS = tuple(f"leaf.{kind}.hr@{LIST}" for kind in ("all", "new"))
FIGURES = (*HITS, "tag_diversity", "length", "alignment", "valid_calls")
"""Of an arm, see `household_values`."""
EXPLAINED = ("diversity", "pass_rate")
"""What is taken over from an evaluation of explanations."""

Values = dict[str, list[float | None]]
"""By figure a value a household; None where it has none."""
Key = tuple[str, datetime, tuple[str, ...]]
"""A household, a moment, and the tags written for it."""


class TagScores(BaseModel):
    """What a reward model gave the final tags of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: str
    """The reward model's weights."""
    user_id: str
    as_of: datetime
    tags: list[str]
    scores: list[float]
    """Of the tags, in (0, 1)."""

    @property
    def key(self) -> Key:
        """What is scored once, whichever arm wrote it."""
        return self.user_id, self.as_of, tuple(self.tags)


def split_cases(dataset: Dataset, split: str) -> list[Case]:
    """All households before their last basket (test) or the one before it (validation), in the order of evaluations.

    Raises:
        DatasetError: there is none.
    """
    if split == "test":
        cases = evaluation_cases(dataset, None)
    else:
        cases = basket_cases(dataset, VALIDATION_BASKET, dataset.users.height, SEED)
    if not cases:
        raise DatasetError(f"{dataset.directory} has no household with a {split} basket, see eval/splits.py")
    return cases


def shared_runs(arms: Mapping[str, Sequence[TagRun]], cases: Sequence[Case]) -> dict[str, list[TagRun]]:
    """The runs of each arm on the households that every arm has, in the order of the cases.

    Raises:
        OutputError: the arms have no household in common.
    """
    found = {name: {(run.user_id, run.as_of): run for run in runs} for name, runs in arms.items()}
    order = [(case.user_id, case.as_of) for case in cases]
    shared = [key for key in order if all(key in own for own in found.values())]
    if not shared:
        counts = ", ".join(f"{name} {len(own)}" for name, own in found.items())
        raise OutputError(f"no household is in all arms (households: {counts}); give another --out")
    return {name: [own[key] for key in shared] for name, own in found.items()}


def final_tags(run: TagRun) -> list[str]:
    """Different final tags, in their order."""
    return list({tag.tag.casefold(): tag.tag for tag in run.tags}.values())


def scores_key(run: TagRun) -> Key:
    """Under what the scores of a run's final tags are kept."""
    return run.user_id, run.as_of, tuple(final_tags(run))


def tag_candidates(dataset: Dataset, index: CatalogIndex, run: TagRun) -> list[list[BaseMessage]]:
    """The final tags of a run as the reward model reads them: candidates of one context. Blocks.

    The household is shown as in the reward model's training: with its whole history, and no weather.
    """
    household = whole_household(dataset, run.user_id, run.as_of)
    return reward_messages(tag_judge_tasks(run.user_id, run.as_of, household, final_tags(run), index))


async def score_runs(
    endpoint: Endpoint,
    reward: str,
    dataset: Dataset,
    index: CatalogIndex,
    runs: Sequence[TagRun],
    concurrency: int,
    write: Callable[[TagScores], None],
) -> None:
    """Have the reward model score the final tags of runs; `write` gets those of a run when they are there.

    Args:
        endpoint: the server of the reward model.
        reward: its weights, see `tools.models.weights_name`.
        dataset: what the runs are about.
        index: of its catalogue.
        runs: of any arms; each has tags.
        concurrency: runs at a time.
        write: keeps scores.

    Raises:
        ServerError: the server is gone, or is none of a reward model; what is scored is kept.
    """
    slots = asyncio.Semaphore(concurrency)

    async def score_run(run: TagRun) -> None:
        async with slots:
            candidates = await asyncio.to_thread(tag_candidates, dataset, index, run)
            scores = await score(endpoint, candidates)
        write(TagScores(reward=reward, user_id=run.user_id, as_of=run.as_of, tags=final_tags(run), scores=scores))

    await gather_all([score_run(run) for run in runs])


def read_scores(path: Path, reward: str) -> dict[Key, list[float]]:
    """The scores of a file that were given by these weights; none if there is no such file.

    Raises:
        OutputError: it has other lines.
    """
    return {line.key: line.scores for line in read_json_lines(path, TagScores) if line.reward == reward}


def training_figures(
    arms: Mapping[str, Sequence[TagRun]],
    best: str,
    dataset: Dataset,
    embedder: Embedder,
    scores: Mapping[Key, Sequence[float]],
) -> dict[str, Estimate]:
    """What each arm is worth, and how arms differ household by household.

    Args:
        arms: see `shared_runs`.
        best: the arm that is compared with V1.
        dataset: what the runs are about.
        embedder: of tags and leaf names.
        scores: by the reward model, of as many runs as were scored.

    Returns:
        `training.<arm>.<figure>` for `FIGURES`, see `household_values`; `training.<arm>-<other>.<figure>`, the mean
        difference of `PAIRS` and of the best from V1; and of hit rates `training.<arm>/<other>.<figure>`, the gain
        relative to the other's mean.
    """
    found = {name: household_values(runs, dataset, embedder, scores) for name, runs in arms.items()}
    figures = {
        f"training.{name}.{key}": estimate(known(values)) for name, own in found.items() for key, values in own.items()
    }
    for (name, other), key in product([*PAIRS, (best, "v1")], FIGURES):
        if name != other and {name, other} <= found.keys():
            both = zip(found[name][key], found[other][key], strict=True)
            pairs = [(a, b) for a, b in both if a is not None and b is not None]
            figures[f"training.{name}-{other}.{key}"] = estimate([a - b for a, b in pairs])
            if key in HITS:
                figures[f"training.{name}/{other}.{key}"] = relative([a for a, _ in pairs], [b for _, b in pairs])
    return figures


def household_values(
    runs: Sequence[TagRun], dataset: Dataset, embedder: Embedder, scores: Mapping[Key, Sequence[float]]
) -> Values:
    """The figures of each run, in their order.

    `leaf.<all|new>.hr@30`: share of the basket among the first leaves that the tags name; and of the final tags
    `tag_diversity`: mean of 1 - cosine over their pairs; `length`: words a tag; `alignment`: their mean reward, where
    they were scored; `valid_calls`: share of the calls whose answer held at the first try.
    """
    tags = [final_tags(run) for run in runs]
    different = sorted({tag for own in tags for tag in own})
    place = {tag: number for number, tag in enumerate(different)}
    vectors = embedder.embed(different) if different else np.empty((0, 0), dtype=np.float32)
    first_tries = [[call.valid for call in run.calls if call.attempt == 1] for run in runs]
    return {
        **_hit_rates(runs, dataset, embedder),
        "tag_diversity": [_diversity(vectors[[place[tag] for tag in own]]) if len(own) > 1 else None for own in tags],
        "length": [_mean([len(tag.split()) for tag in own]) for own in tags],
        "alignment": [_mean(scores.get(scores_key(run), [])) for run in runs],
        "valid_calls": [_mean(valid) for valid in first_tries],
    }


def week_figures(weeks: Mapping[str, Sequence[TagRun]], dataset: Dataset, embedder: Embedder) -> dict[str, Estimate]:
    """`training.weeks.<week>.leaf.<all|new>.hr@30` of the best arm's runs at the start of each week."""
    return {
        f"training.weeks.{week}.{key}": estimate(known(values))
        for week, runs in weeks.items()
        for key, values in _hit_rates(runs, dataset, embedder).items()
    }


def explanation_figures(files: Mapping[str, Path]) -> dict[str, Estimate]:
    """`training.explanations.<name>.<figure>` for `EXPLAINED`, of V2's explanations in `metrics.json` of each name.

    Raises:
        OutputError: a file is missing, or lacks these figures.
    """
    figures = {}
    for name, path in files.items():
        values = read_metrics(path)
        for key in EXPLAINED:
            if (wanted := f"explanations.v2.{key}") not in values:
                raise OutputError(f"{path} lacks {wanted}: expected figures of `recgpt eval explanations` with a judge")
            figures[f"training.explanations.{name}.{key}"] = values[wanted]
    return figures


def _hit_rates(runs: Sequence[TagRun], dataset: Dataset, embedder: Embedder) -> Values:
    ranked = ranked_leaves(runs, dataset, embedder)
    return {
        key: [hit_rate_at_k(leaves, run.case, LIST, new) for leaves, run in zip(ranked, runs, strict=True)]
        for key, new in zip(HITS, (False, True), strict=True)
    }


def _diversity(vectors: Embeddings) -> float:
    """Mean of 1 - cosine over all pairs of unit vectors (n, d)."""
    cosines = vectors @ vectors.T
    return float(1 - cosines[np.triu_indices(len(vectors), k=1)].mean())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def of_arms(values: Mapping[str, Estimate], figure: str) -> dict[str, Estimate]:
    """A figure by arm, of the arms that have it."""
    return {name: value for name in ARMS if (value := values.get(f"training.{name}.{figure}"))}


def table_rows(values: Mapping[str, Estimate]) -> dict[str, list[Estimate | None]]:
    """A row an arm, a cell for each of `FIGURES`."""
    rows = {name: [values.get(f"training.{name}.{figure}") for figure in FIGURES] for name in ARMS}
    return {name: row for name, row in rows.items() if any(row)}


def write_training_page(path: Path, values: Mapping[str, Estimate], best: str) -> None:
    """The page of the figures, by their keys in `metrics.json`; the best arm is green."""
    weeks = {
        key: {week: value for week in WEEKS if (value := values.get(f"training.weeks.{week}.{key}"))} for key in HITS
    }
    pairs = dict.fromkeys(key.split(".")[1] for key in values if "-" in key.split(".")[1])
    explained = dict.fromkeys(
        key.removeprefix(prefix).rsplit(".", 1)[0]
        for key in values
        if key.startswith(prefix := "training.explanations.")
    )
    colours = {"v1": BLUE, best: GREEN}
    write_page(
        path,
        "What training is worth",
        f"V1, and V2 with the untuned base and with tuned models, on the same households. HR@{LIST}: share of a "
        f"household's next basket among the first {LIST} leaf categories that the tags name; new counts what it never "
        "bought, with what it bought taken off the list. Diversity: "
        "mean of 1 - cosine over pairs of final tags; length: words a tag; alignment: mean score of the final tags by "
        "the reward model; valid calls: answers that held at the first try. Means over households with 95 % bootstrap "
        "intervals.",
        {
            f"HR@{LIST} of leaf categories": _panels({key: of_arms(values, key) for key in HITS}, colours),
            "What the tags are like": _panels({key: of_arms(values, key) for key in FIGURES[len(HITS) :]}, colours),
            f"HR@{LIST} of {best} in the weeks of a season": _panels(weeks, {}),
        },
        [
            Table("Arms", "arm", FIGURES, table_rows(values), counts=True),
            Table(
                "Differences, household by household",
                "arm - other",
                FIGURES,
                {pair: [values.get(f"training.{pair}.{figure}") for figure in FIGURES] for pair in pairs},
                counts=True,
            ),
            Table(
                "Gains relative to the other's mean",
                "arm / other",
                HITS,
                {
                    ratio: [values.get(f"training.{ratio}.{figure}") for figure in HITS]
                    for ratio in (pair.replace("-", "/") for pair in pairs)
                },
                counts=True,
            ),
            Table(
                "Explanations",
                "model",
                EXPLAINED,
                {
                    name: [values.get(f"training.explanations.{name}.{figure}") for figure in EXPLAINED]
                    for name in explained
                },
                counts=True,
            ),
            list_of(
                f"The weeks, {best}", {key: value for key, value in values.items() if key.startswith("training.weeks.")}
            ),
        ],
    )


def _panels(groups: Mapping[str, Mapping[str, Estimate]], colours: Mapping[str, str]) -> str:
    """A panel a figure, a bar a name; nothing where there is no figure."""
    there = {key: found for key, found in groups.items() if found}
    if not there:
        return ""
    most = max(len(found) for found in there.values())
    plot = Figure(figsize=(9.5, 0.8 + 0.28 * most), layout="constrained")
    for axes, (key, found) in zip(
        plot.subplots(1, len(there), sharey=True, squeeze=False)[0], there.items(), strict=True
    ):
        draw_bars(axes, found, colours)
        axes.set_title(key, fontsize=9)
    return svg_of(plot)
