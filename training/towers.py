"""Train the towers of the utility channel: what households bought next, and which leaf an item belongs to.

    recgpt train towers

An example is a household before one of its baskets. Its target is that basket, in which titles of leaves that it never
bought count as much as all others together. The softmax is over the whole catalogue, so that nothing hangs on how
negatives are drawn. Tags are trained on the names of leaves: the items of a tag are those of its leaf.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eval.baskets import Baskets, Ids, read_level
from eval.retrieval import TowerRecommender, questions, worth
from eval.splits import VALIDATION_BASKET, basket_cases
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.retrieval import embed_catalog
from tools.towers import Towers, TowerShape, age_buckets, index_catalogue, leaf_of_titles, save_towers, scores


@dataclass(frozen=True)
class TowerRecipe:
    """Hyper-parameters."""

    seed: int = 7
    batch: int = 64
    learning_rate: float = 3e-3
    """At the start; it falls to zero along a cosine over all epochs."""
    epochs: int = 16
    patience: int = 5
    """Epochs without a better validation figure before it stops."""
    cuts: int = 6
    """Baskets of a household that are targets in one epoch, drawn anew each time."""
    least_baskets: int = 3
    """Before a target."""
    for_ranker: int = 3
    """A household's last training baskets that are no targets: the ranker learns on them what the towers are worth."""
    tag_weight: float = 0.2
    """Of the loss of tags beside that of users."""
    validation_users: int = 600


@dataclass(frozen=True)
class Batch:
    """Households before a basket, and what was in it."""

    rows: Tensor
    """Titles bought before, (b, t), zero where padded."""
    ages: Tensor
    """`age_buckets` of them, (b, t)."""
    there: Tensor
    """Where a row is not padded, (b, t)."""
    targets: Tensor
    """Weights of the titles of the basket, (b, n); each row sums to one."""


def train_towers(
    dataset_dir: Path,
    embedding_model: str,
    out: Path,
    recipe: TowerRecipe,
    report: Callable[[str], None],
    command: str,
) -> dict[str, object]:
    """Train until HR@30 on validation baskets stops rising; write the best epoch's weights and a card to `out`.

    Args:
        dataset_dir: the data set.
        embedding_model: setting of the text embedder.
        out: directory to write.
        recipe: hyper-parameters.
        report: called with a sentence an epoch.
        command: for the card.

    Returns:
        The card.
    """
    started = time.monotonic()
    dataset, embedder = open_dataset(dataset_dir), open_embedder(embedding_model)
    titles, leaf_names = embed_catalog(dataset, embedder, report)
    products, leaves = read_level(dataset, "product"), read_level(dataset, "leaf")
    _, leaf_of = leaf_of_titles(dataset)
    asked = questions(leaves, basket_cases(dataset, VALIDATION_BASKET, recipe.validation_users, recipe.seed))
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    towers = Towers(TowerShape(text=titles.shape[1]))
    optimiser = torch.optim.AdamW(towers.parameters(), recipe.learning_rate, weight_decay=1e-3)
    texts, names = torch.from_numpy(titles), torch.from_numpy(leaf_names)
    train = list(products.training().values())
    best, best_epoch = -np.inf, 0
    card: dict[str, object] = {}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)
    for epoch in range(1, recipe.epochs + 1):
        towers.train()
        losses = []
        for batch in batches(train, leaf_of, recipe, towers.shape.length, rng):
            items = towers.item(texts)
            of_users = scores(towers.users(texts[batch.rows], batch.ages, batch.there), items).log_softmax(dim=1)
            some = torch.from_numpy(rng.integers(0, len(titles), recipe.batch))
            of_tags = cross_entropy(items[some] @ towers.tag(names).T, torch.from_numpy(leaf_of)[some])
            loss = -(batch.targets * of_users).sum(dim=1).mean() + recipe.tag_weight * of_tags
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        schedule.step()
        index = index_catalogue(towers, dataset, titles)
        value = worth(TowerRecommender(dataset, index, leaves.entities), leaves, asked)
        report(f"towers epoch {epoch}: loss {np.mean(losses):.3f}, validation {value:.4f}, best {max(best, value):.4f}")
        if value > best:
            best, best_epoch = value, epoch
            card = {
                "command": command,
                "dataset": dataset.info.name,
                "embedder": embedder.name,
                "recipe": asdict(recipe),
                "epoch": epoch,
                "validation": {"hr@30.all + hr@30.new, leaves": round(value, 4), "households": len(asked)},
                "hardware": f"CPU, {torch.get_num_threads()} threads",
                "minutes": round((time.monotonic() - started) / 60, 1),
                "licence": "Apache-2.0",
            }
            save_towers(towers, out, card)
        elif epoch - best_epoch >= recipe.patience:
            break
    return card


def batches(
    train: Sequence[Baskets], leaf_of: Ids, recipe: TowerRecipe, length: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch: `recipe.cuts` baskets of each household as targets, in random order.

    Args:
        train: baskets at the level of titles.
        leaf_of: leaf of each title, (n,).
        recipe: see there.
        length: most titles of a history, the last ones.
        rng: of cuts and order.
    """
    cuts = [
        (own, int(cut))
        for own in train
        if len(possible := np.arange(recipe.least_baskets, len(own.contents) - recipe.for_ranker))
        for cut in rng.choice(possible, min(recipe.cuts, len(possible)), replace=False)
    ]
    order = rng.permutation(len(cuts))
    for start in range(0, len(order), recipe.batch):
        chosen = [cuts[row] for row in order[start : start + recipe.batch]]
        rows = np.zeros((len(chosen), length), dtype=np.int64)
        ages = np.zeros_like(rows)
        there = np.zeros(rows.shape, dtype=bool)
        targets = np.zeros((len(chosen), len(leaf_of)), dtype=np.float32)
        for row, (own, cut) in enumerate(chosen):
            titles, days = Baskets(own.starts[:cut], own.contents[:cut]).flat(own.starts[cut].item())
            count = min(length, len(titles))
            rows[row, :count], ages[row, :count] = titles[-count:], age_buckets(days[-count:])
            there[row, :count] = True
            bought = np.isin(leaf_of[own.contents[cut]], leaf_of[titles])
            for part in (own.contents[cut][bought], own.contents[cut][~bought]):
                targets[row, part] = 1 / max(len(part), 1)
        targets /= targets.sum(axis=1, keepdims=True)
        yield Batch(*(torch.from_numpy(array) for array in (rows, ages, there, targets)))
