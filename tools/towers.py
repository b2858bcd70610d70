"""User, item and tag towers over text embeddings (section 8): several interests a user, FAISS for the nearest items.

The user tower reads the last purchases. K learned context codes attend over them as in a Poly-Encoder (Humeau et al.
2020) and give K interest vectors u_k; the score of item i is `max_k u_k . v_i`. All that a tower knows of an item is
its text, so a new item needs no training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.dataset import Dataset
from tools.embedding import Embedder, Embeddings
from tools.errors import ModelFilesError
from tools.loading import load_once
from tools.purchases import Scores, purchases_before
from tools.retrieval import embed_catalog
from tools.weights import CARD, read_weights, write_weights

TOWERS = Path(__file__).parent.parent / "training" / "weights" / "towers"
"""The trained towers that come with the project."""
WEIGHTS = "towers.safetensors"
SEARCHED = 20_000
"""Titles that are looked up for a household, at most."""
AGE_BUCKETS = 12
"""Ages of purchases by powers of two: under a day, under two days, under four ..."""


@dataclass(frozen=True)
class TowerShape:
    """Sizes of the towers."""

    text: int
    """Dimensions of the text embeddings."""
    width: int = 96
    interests: int = 4
    """K."""
    length: int = 120
    """Purchases that the user tower reads, the last ones."""


class Towers(nn.Module):
    """The three towers."""

    def __init__(self, shape: TowerShape) -> None:
        """New weights."""
        super().__init__()
        self.shape = shape
        self.item = _tower(shape)
        self.tag = _tower(shape)
        self.behaviour = nn.Linear(shape.text, shape.width)
        self.ages = nn.Embedding(AGE_BUCKETS, shape.width)
        self.codes = nn.Parameter(torch.randn(shape.interests, shape.width) / shape.width**0.5)
        self.interest = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.width))

    def users(self, texts: Tensor, ages: Tensor, there: Tensor) -> Tensor:
        """Interest vectors.

        Args:
            texts: embeddings of the purchases, (b, t, text).
            ages: `age_buckets` of each, (b, t).
            there: False where a row is padded, (b, t).

        Returns:
            (b, K, width).
        """
        hidden = torch.tanh(self.behaviour(texts) + self.ages(ages))
        attention = (hidden @ self.codes.T).masked_fill(~there[..., None], -torch.inf).softmax(dim=1)
        interests: Tensor = self.interest(attention.transpose(1, 2) @ hidden)
        return interests


def scores(interests: Tensor, items: Tensor) -> Tensor:
    """`max_k u_k . v_i` for interests (b, K, width) and items (n, width): (b, n)."""
    return (interests @ items.T).amax(dim=1)


def age_buckets(days: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the buckets of ages in days."""
    return np.asarray(np.minimum(np.log2(np.maximum(days, 0) + 1), AGE_BUCKETS - 1), dtype=np.int64)


def _tower(shape: TowerShape) -> nn.Sequential:
    return nn.Sequential(nn.Linear(shape.text, 2 * shape.width), nn.GELU(), nn.Linear(2 * shape.width, shape.width))


@dataclass(frozen=True, eq=False)
class TowerIndex:
    """Trained towers with the titles of a catalogue in FAISS."""

    towers: Towers
    texts: Embeddings
    """Embeddings of the titles, (n, text)."""
    titles: Sequence[str]
    row: dict[str, int]
    """Of each title."""
    sold_from: NDArray[np.datetime64]
    """When each title was first sold, (n,)."""
    items: Embeddings
    """The titles as the item tower sees them, (n, width)."""
    _index: faiss.IndexFlatIP

    def interests(self, titles: Sequence[str], days: Sequence[float]) -> Embeddings:
        """(K, width) of a user who bought these titles, oldest first, so many days ago."""
        if not titles:
            raise ValueError("a user without purchases has no interests")
        last = slice(-self.towers.shape.length, None)
        texts = torch.from_numpy(self.texts[[self.row[title] for title in titles[last]]])[None]
        ages = torch.from_numpy(age_buckets(np.asarray(days[last], dtype=np.float64)))[None]
        with torch.inference_mode():
            found = self.towers.users(texts, ages, torch.ones(ages.shape, dtype=torch.bool))
        return np.asarray(found[0].numpy(), dtype=np.float32)

    def search(self, interests: Embeddings, count: int) -> tuple[NDArray[np.int64], Scores]:
        """The `count` best titles of any interest: their rows and scores, best first."""
        found, rows = self._index.search(interests, min(count, self._index.ntotal))
        best: Scores = np.full(self._index.ntotal, -np.inf, dtype=np.float32)
        np.maximum.at(best, rows.ravel(), found.ravel())
        order = np.argsort(-best, kind="stable")[: min(count, int(np.isfinite(best).sum()))]
        return order, best[order]


def build_index(
    towers: Towers, titles: Sequence[str], texts: Embeddings, sold_from: NDArray[np.datetime64]
) -> TowerIndex:
    """Project all titles once, texts (n, text)."""
    with torch.inference_mode():
        items: Embeddings = towers.eval().item(torch.from_numpy(texts)).numpy()
    index = faiss.IndexFlatIP(towers.shape.width)
    index.add(items)
    return TowerIndex(towers, texts, titles, {title: row for row, title in enumerate(titles)}, sold_from, items, index)


@dataclass(frozen=True)
class TowerMatch:
    """The best title of a leaf category for a household."""

    title: str
    score: float


def leaf_matches(index: TowerIndex, dataset: Dataset, user_id: str, as_of: datetime) -> dict[str, TowerMatch]:
    """The leaves of the `SEARCHED` best titles for a household at a moment, best first.

    None without a purchase before that; of a leaf the best title that was sold by then.
    """
    bought = purchases_before(dataset, as_of, user_id)
    if bought.is_empty():
        return {}
    days = ((pl.lit(as_of) - pl.col("timestamp")).dt.total_seconds() / 86_400).alias("days")
    history = bought.select("title", days).unique(maintain_order=True)
    interests = index.interests(history["title"].to_list(), history["days"].to_list())
    leaves, leaf_of = leaf_of_titles(dataset)
    rows, found = index.search(interests, SEARCHED)
    sold = index.sold_from[rows] < np.datetime64(as_of)
    rows, found = rows[sold], found[sold]
    _, first = np.unique(leaf_of[rows], return_index=True)
    return {
        leaves[leaf_of[rows[place]]]: TowerMatch(index.titles[rows[place]], float(found[place]))
        for place in np.sort(first)
    }


def tower_scores(index: TowerIndex, dataset: Dataset, user_id: str, as_of: datetime) -> dict[str, float]:
    """The scores of `leaf_matches`."""
    return {leaf: match.score for leaf, match in leaf_matches(index, dataset, user_id, as_of).items()}


@load_once(maxsize=4)
def leaf_of_titles(dataset: Dataset) -> tuple[list[str], NDArray[np.int64]]:
    """The leaves of a catalogue in order, and the number of the leaf of each title (both sorted by name)."""
    pairs = (
        dataset.items.select("title", leaf=pl.col("category").list.last())
        .sort("title", "leaf")
        .unique("title", keep="first", maintain_order=True)
    )
    leaves = dataset.items.select(pl.col("category").list.last()).to_series().unique().sort().to_list()
    number = {leaf: row for row, leaf in enumerate(leaves)}
    return leaves, np.array([number[leaf] for leaf in pairs["leaf"]], dtype=np.int64)


def save_towers(towers: Towers, directory: Path, card: dict[str, object]) -> None:
    """Write weights and card."""
    weights = {name: weight.half() for name, weight in towers.state_dict().items()}
    write_weights(directory, WEIGHTS, weights, {"shape": asdict(towers.shape), **card})


@load_once(maxsize=4)
def open_towers(dataset: Dataset, embedder: Embedder, directory: Path) -> TowerIndex:
    """The towers of a directory over the titles of a data set. Blocks.

    Raises:
        ModelFilesError: see `load_towers`.
    """
    return index_catalogue(load_towers(directory, embedder.name), dataset, embed_catalog(dataset, embedder)[0])


def index_catalogue(towers: Towers, dataset: Dataset, texts: Embeddings) -> TowerIndex:
    """The titles of a data set, whose embeddings are (n, text), by name."""
    always = pl.lit(datetime.min)
    first = dataset.items.group_by("title").agg(pl.col("available_from").fill_null(always).min()).sort("title")
    return build_index(towers, first["title"].to_list(), texts, first["available_from"].to_numpy())


def load_towers(directory: Path, embedder: str) -> Towers:
    """Towers that were trained on this embedder's vectors.

    Raises:
        ModelFilesError: they are missing or damaged, or were trained on another embedder's vectors.
    """
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        towers = Towers(TowerShape(**card["shape"]))
        towers.load_state_dict(
            {name: weight.float() for name, weight in read_weights(directory, WEIGHTS, card).items()}
        )
        trained_on = card["embedder"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFilesError(
            f"{directory} holds no towers of this version ({error!r}); train them with `recgpt train towers`"
        ) from error
    if trained_on != embedder:
        raise ModelFilesError(
            f"{directory} was trained on the embeddings of {trained_on}, this is {embedder}: "
            "set that embedding model, or train anew with `recgpt train towers`"
        )
    return towers
