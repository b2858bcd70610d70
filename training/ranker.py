"""Train the ranker of both channels: which leaves a household buys at its next visit.

    recgpt train ranker

Examples are the last training baskets of each household and some earlier ones: every leaf that it bought before, and
some of the others, weighted so that the probabilities come out right. The loss is listwise (ListNet's, Cao et al.
2007): cross-entropy of the softmax over a household's leaves with its basket, to which every basket adds the same, as
to the hit rate. What a tag is worth is chosen on validation households afterwards, from runs of the agents
(`recgpt eval arm`), since only there the agents have not seen the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.grounding import tagged_leaves
from eval.baskets import LevelData, read_level
from eval.metrics import estimate, hit_rate_at_k
from eval.retrieval import DEPTH, VALIDATION_USERS, Combined, questions, worth
from eval.splits import SEED, VALIDATION_BASKET, basket_cases
from eval.tags import TagRun
from tools.dataset import Dataset, open_dataset
from tools.embedding import open_embedder
from tools.errors import DatasetError
from tools.models import sha256
from tools.occasions import Occasions, open_occasions
from tools.ranker import MEMBERS, Network, Ranker, UtilityChannel, read_leaf_table, save_ranker
from tools.towers import WEIGHTS as TOWER_WEIGHTS
from tools.towers import TowerIndex, open_towers, tower_scores
from training.view import training_view

SETTLING_DAYS = 40
"""From the first purchase on, until what is bought lately and what rises says something."""
TAG_BONUSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class RankerRecipe:
    """Hyper-parameters."""

    seed: int = 7
    baskets: int = 6
    """Targets of a household: its last training baskets. The towers saw the first three of them too, which does not
    matter on validation baskets."""
    earlier: int = 6
    """Targets of it that are drawn among its earlier ones: the holidays that the year has seen are there."""
    keep_new: float = 0.15
    """Share of the leaves never bought, and not in the target, that are kept; each then counts `1 / keep_new` times."""
    learning_rate: float = 2e-3
    batch: int = 24
    """Baskets."""
    epochs: int = 4


@dataclass(frozen=True)
class Rows:
    """Training examples."""

    features: NDArray[np.float32]
    """(rows, features)."""
    labels: NDArray[np.bool_]
    """Whether the leaf was in the basket, (rows,)."""
    weights: NDArray[np.float32]
    """How many leaves each row stands for, (rows,)."""
    sizes: NDArray[np.int64]
    """Rows of each basket, (baskets,); they follow one another."""


def train_ranker(
    dataset_dir: Path,
    embedding_model: str,
    towers_dir: Path,
    out: Path,
    recipe: RankerRecipe,
    runs: Sequence[TagRun],
    report: Callable[[str], None],
    command: str,
) -> dict[str, object]:
    """Train, choose what a tag is worth, and write weights and card to `out`.

    Args:
        dataset_dir: the data set.
        embedding_model: setting of the text embedder.
        towers_dir: the trained towers.
        out: directory to write.
        recipe: hyper-parameters.
        runs: of the agents on validation households; without any a tag is worth nothing.
        report: called with a sentence at each step.
        command: for the card.

    Returns:
        The card.
    """
    started = time.monotonic()
    dataset, embedder = open_dataset(dataset_dir), open_embedder(embedding_model)
    towers, occasions = open_towers(dataset, embedder, towers_dir), open_occasions(dataset, embedder)
    cuts = cut_points(read_level(dataset, "leaf"), recipe)
    rows = read_rows(training_view(dataset), cuts, towers, occasions, recipe, report)
    network = fit(rows, recipe, report)
    utility, values = choose_tag_bonus(UtilityChannel(Ranker(network, 0.0), towers, occasions), dataset, runs)
    card: dict[str, object] = {
        "command": command,
        "validation": validate(utility, dataset, report),
        "dataset": dataset.info.name,
        "embedder": embedder.name,
        "towers_sha256": sha256(towers_dir / TOWER_WEIGHTS),
        "recipe": asdict(recipe),
        "examples": len(rows.labels),
        "tag_bonus_on_validation": {"households": len(runs), "hr@30.all + hr@30.new, leaves": values},
        "hardware": f"CPU, {torch.get_num_threads()} threads",
        "minutes": round((time.monotonic() - started) / 60, 1),
        "licence": "Apache-2.0",
    }
    save_ranker(utility.ranker, out, card)
    return card


CutPoint = tuple[str, datetime, frozenset[str]]
"""A household, the moment of one of its baskets, and the leaves in it."""


def cut_points(data: LevelData, recipe: RankerRecipe) -> list[CutPoint]:
    """The last training baskets of each household and some drawn earlier ones, in order of time.

    Something was bought before each, and of the earlier ones all households bought for `SETTLING_DAYS`.
    """
    rng = np.random.default_rng(recipe.seed)
    settled = data.daily.first_day + np.timedelta64(SETTLING_DAYS, "D")
    cuts = []
    for user, own in data.training().items():
        last = max(len(own.contents) - recipe.baskets, 1)
        earlier = rng.permutation(np.flatnonzero(own.starts[:last] >= settled))[: recipe.earlier]
        for position in (*earlier.tolist(), *range(last, len(own.contents))):
            if own.starts[position] > own.starts[0]:
                target = frozenset(data.entities[entity] for entity in own.contents[position])
                cuts.append((user, own.starts[position].item(), target))
    return sorted(cuts, key=lambda cut: (cut[1], cut[0]))  # what is counted a week is counted once


def read_rows(
    view: Dataset,
    cuts: Sequence[CutPoint],
    towers: TowerIndex,
    occasions: Occasions,
    recipe: RankerRecipe,
    report: Callable[[str], None],
) -> Rows:
    """The examples of cut points; `view` has nothing that may not be trained on."""
    rng = np.random.default_rng(recipe.seed)
    parts: list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]] = []
    for number, (user, as_of, target) in enumerate(cuts, 1):
        table = read_leaf_table(view, user, as_of, tower_scores(towers, view, user, as_of), occasions)
        labels = np.array([leaf in target for leaf in table.leaves])
        certain = table.bought | labels
        kept = certain | (rng.random(len(labels)) < recipe.keep_new)
        weights = np.where(certain, 1.0, 1 / recipe.keep_new).astype(np.float32)
        parts.append((table.features[kept], labels[kept], weights[kept]))
        report(f"features of {number:,} of {len(cuts):,} baskets")
    sizes = np.array([len(labels) for _, labels, _ in parts])
    features, labels, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Rows(features, labels, weights, sizes)


def fit(rows: Rows, recipe: RankerRecipe, report: Callable[[str], None]) -> Network:
    """Minimise the listwise loss."""
    torch.manual_seed(recipe.seed)
    network = Network()
    features, labels, weights = (torch.from_numpy(part) for part in (rows.features, rows.labels, rows.weights))
    network.mean.copy_(features.mean(dim=0))
    network.scale.copy_(features.std(dim=0).clamp(min=1e-3))
    optimiser = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    steps = recipe.epochs * -(-len(rows.sizes) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.05)
    ends = np.cumsum(rows.sizes)
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        order = torch.randperm(len(ends)).numpy()
        for start in range(0, len(ends), recipe.batch):
            chosen = order[start : start + recipe.batch]
            own = [slice(ends[basket] - rows.sizes[basket], ends[basket]) for basket in chosen]
            found = network.each(torch.cat([features[r] for r in own]))
            logits = found.tensor_split(np.cumsum(rows.sizes[chosen])[:-1].tolist())
            parts = [listwise(each, labels[r], weights[r]) for each, r in zip(logits, own, strict=True)]
            loss = torch.stack(parts).mean()
            optimiser.zero_grad()
            (MEMBERS * loss).backward()  # type: ignore[no-untyped-call]  # each as if it were alone
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        report(f"ranker epoch {epoch} of {recipe.epochs}: listwise loss {np.mean(losses):.4f}")
    return network.eval()


def listwise(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the leaves of a household with its basket, by each member, (members,).

    Args:
        logits: of leaves, (n, members).
        labels: whether each is in the basket, (n,).
        weights: how many leaves each stands for, (n,).
    """
    return (logits + weights.log()[:, None]).logsumexp(dim=0) - logits[labels].mean(dim=0)


def validate(utility: UtilityChannel, dataset: Dataset, report: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """HR@30 of leaves without tags on validation baskets, and of the likeliest how many come true."""
    figures: dict[str, list[float]] = {key: [] for key in ("hr@30.all", "hr@30.new", "chance of 30", "bought of 30")}
    cases = basket_cases(dataset, VALIDATION_BASKET, VALIDATION_USERS, SEED)
    for number, case in enumerate(cases, 1):
        found = utility.rank(dataset, case.user_id, case.as_of)
        ranked = sorted(found, key=lambda leaf: -found[leaf].chance)
        figures["chance of 30"].append(float(np.mean([found[leaf].chance for leaf in ranked[:DEPTH]])))
        figures["bought of 30"].append(float(np.mean([leaf in case.target for leaf in ranked[:DEPTH]])))
        for kind, new in (("all", False), ("new", True)):
            if (rate := hit_rate_at_k(ranked, case, DEPTH, new)) is not None:
                figures[f"hr@{DEPTH}.{kind}"].append(rate)
        report(f"validation baskets {number} of {len(cases)}")
    return {key: asdict(estimate(values)) for key, values in figures.items()}


def choose_tag_bonus(
    utility: UtilityChannel, dataset: Dataset, runs: Sequence[TagRun]
) -> tuple[UtilityChannel, dict[str, float]]:
    """The channel whose ranker has the bonus that is worth most on the runs, and what each is worth.

    See `eval.retrieval.worth`.

    Raises:
        DatasetError: a run is of no validation basket.
    """
    leaves = read_level(dataset, "leaf")
    everyone = basket_cases(dataset, VALIDATION_BASKET, dataset.users.height, SEED)
    cases = {(case.user_id, case.as_of): case for case in everyone}
    for run in runs:
        if (run.user_id, run.as_of) not in cases:
            raise DatasetError(
                f"household {run.user_id} at {run.as_of} is no validation basket: what a tag is worth is chosen on "
                "the output of `recgpt eval arm`, never on what is tested"
            )
    asked = questions(leaves, [cases[run.user_id, run.as_of] for run in runs])
    tagged = {(run.user_id, run.as_of): list(tagged_leaves(run.tags)) for run in runs}
    priced = {bonus: replace(utility, ranker=replace(utility.ranker, tag_bonus=bonus)) for bonus in TAG_BONUSES}
    values = {
        str(bonus): round(worth(Combined(dataset, priced[bonus], tagged), leaves, asked), 4)
        for bonus in (TAG_BONUSES if runs else ())
    }
    best = max(values, key=lambda key: values[key], default="0")
    return priced[float(best)], values
