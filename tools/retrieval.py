"""Nearest neighbours by FAISS: tags to items (section 8 of the report, cognitive channel) and to leaf categories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from uuid import uuid4

import faiss
import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray

from tools.dataset import Dataset
from tools.embedding import Embedder, Embeddings
from tools.loading import load_once

log = structlog.get_logger("recgpt")

BestSellers = dict[str, tuple[str, str, list[str]]]
"""By title: item_id, title, category path."""


@dataclass(frozen=True)
class LeafMatch:
    """The leaf category nearest to a text."""

    path: list[str]
    """From root to leaf."""
    similarity: float
    """Cosine."""


@dataclass(frozen=True)
class ItemMatch:
    """An item found for a text."""

    item_id: str
    title: str
    path: list[str]
    score: float
    """Cosine of text and title."""


@dataclass(frozen=True, eq=False)
class CatalogIndex:
    """Titles and leaf names of a data set as FAISS indexes (inner product of unit vectors = cosine).

    One vector a distinct title: many products of a shop share theirs, and among them the best-selling one
    before the moment of the request is the one returned.
    """

    dataset: Dataset
    embedder: Embedder
    titles: list[str]
    leaves: list[list[str]]
    _title_index: faiss.IndexFlatIP
    _leaf_index: faiss.IndexFlatIP

    def nearest_leaves(self, texts: Sequence[str]) -> list[LeafMatch]:
        """The nearest leaf category of each text. Blocks."""
        scores, rows = self._leaf_index.search(self.embedder.embed(texts), 1)
        return [LeafMatch(self.leaves[row], float(score)) for (score,), (row,) in zip(scores, rows, strict=True)]

    def rank_leaves(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All n leaf categories for each of m texts, the nearest first. Blocks.

        Returns:
            Their cosines and their places in `leaves`, (m, n) each.
        """
        if not texts:
            return np.empty((0, len(self.leaves)), dtype=np.float32), np.empty((0, len(self.leaves)), dtype=np.int64)
        scores, rows = self._leaf_index.search(self.embedder.embed(texts), len(self.leaves))
        return scores, rows

    def search_items(self, texts: Sequence[str], per_text: int, as_of: datetime) -> list[list[ItemMatch]]:
        """The `per_text` nearest titles of each text, an item each, best first. Blocks."""
        best = best_sellers(self.dataset, datetime.combine(as_of.date(), datetime.min.time()))
        sold = [row for row, title in enumerate(self.titles) if title in best]
        return self._nearest(self.embedder.embed(texts), sold, per_text, best)

    def search_leaves(self, texts: Mapping[str, str], as_of: datetime) -> dict[str, ItemMatch]:
        """For each leaf the item of it that is nearest to its text; leaves without any item are left out. Blocks."""
        if not texts:
            return {}
        best = best_sellers(self.dataset, datetime.combine(as_of.date(), datetime.min.time()))
        rows: dict[str, list[int]] = {leaf: [] for leaf in texts}
        for row, title in enumerate(self.titles):
            if title in best and best[title][2][-1] in rows:
                rows[best[title][2][-1]].append(row)
        found: dict[str, ItemMatch] = {}
        for leaf, vector in zip(texts, self.embedder.embed(list(texts.values())), strict=True):
            for match in self._nearest(vector[None], rows[leaf], 1, best)[0]:
                found[leaf] = match
        return found

    def _nearest(
        self, vectors: Embeddings, rows: Sequence[int], count: int, best: BestSellers
    ) -> list[list[ItemMatch]]:
        """The `count` nearest to each of the vectors (m, d) among some titles, best first."""
        if not rows:
            return [[] for _ in vectors]
        among = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.array(rows, dtype=np.int64)))  # type: ignore[call-arg]
        scores, found = self._title_index.search(vectors, min(count, len(rows)), params=among)
        return [
            [ItemMatch(*best[self.titles[row]], score=float(score)) for score, row in zip(*line, strict=True)]
            for line in zip(scores, found, strict=True)
        ]


@load_once(maxsize=4)
def open_index(dataset: Dataset, embedder: Embedder) -> CatalogIndex:
    """The index of a data set. Its vectors are computed once and kept in `DIR/index`, keyed by content and embedder."""
    titles, leaves = _titles(dataset), leaf_paths(dataset)
    title_vectors, leaf_vectors = embed_catalog(dataset, embedder)
    return CatalogIndex(dataset, embedder, titles, leaves, _flat(title_vectors), _flat(leaf_vectors))


def embed_catalog(
    dataset: Dataset, embedder: Embedder, report: Callable[[str], None] = lambda message: None
) -> tuple[Embeddings, Embeddings]:
    """The vectors of titles and leaf names, from `DIR/index` or computed now; `report` tells how that gets on.

    Vectors that can't be written there are computed again the next time; the log has a warning.
    """
    directory = dataset.directory / "index"
    leaf_names = [path[-1] for path in leaf_paths(dataset)]
    return (
        _stored_vectors(directory, "titles", _titles(dataset), embedder, report),
        _stored_vectors(directory, "leaves", leaf_names, embedder, report),
    )


def _titles(dataset: Dataset) -> list[str]:
    return dataset.items["title"].unique().sort().to_list()


def leaf_paths(dataset: Dataset) -> list[list[str]]:
    """One path a leaf name: a name may hang under several departments, and its commonest path stands for it."""
    return (
        dataset.items.group_by(pl.col("category").list.last().alias("leaf"), "category")
        .len()
        .sort("leaf", "len", pl.col("category").list.join(">"), descending=[False, True, False])
        .group_by("leaf", maintain_order=True)
        .first()["category"]
        .to_list()
    )


@load_once(maxsize=16)
def best_sellers(dataset: Dataset, before: datetime) -> BestSellers:
    """For each title the item most often in events before `before`.

    Only items that are sold by then, see `available_from`.
    """
    counts = dataset.events_before(before).group_by("item_id").len("sold")
    ranked = (
        _sold_by(dataset, before)
        .select("item_id", "title", "category")
        .join(counts, on="item_id", how="left")
        .sort(pl.col("sold").fill_null(0), "item_id", descending=[True, False])
        .unique("title", keep="first", maintain_order=True)
    )
    return {title: (item, title, path) for item, title, path, _ in ranked.iter_rows()}


def _sold_by(dataset: Dataset, before: datetime) -> pl.DataFrame:
    return dataset.items.filter(pl.col("available_from").is_null() | (pl.col("available_from") < before))


POPULAR_DAYS = 28


def popular_items(dataset: Dataset, before: datetime, count: int) -> list[str]:
    """The items most often in events of the four weeks before `before`, one a leaf category, most first."""
    return (
        dataset.events_before(before, since=before - timedelta(days=POPULAR_DAYS))
        .group_by("item_id")
        .len()
        .join(_sold_by(dataset, before).select("item_id", leaf=pl.col("category").list.last()), on="item_id")
        .sort("len", "item_id", descending=[True, False])
        .unique("leaf", keep="first", maintain_order=True)["item_id"]
        .head(count)
        .to_list()
    )


@load_once(maxsize=512)
def popular_leaves(dataset: Dataset, before: datetime) -> tuple[str, ...]:
    """Leaf categories by purchases in the four weeks before `before`, most first."""
    return tuple(
        dataset.events_before(before, since=before - timedelta(days=POPULAR_DAYS))
        .filter(pl.col("action") == "purchase")
        .join(dataset.items.select("item_id", leaf=pl.col("category").list.last()), on="item_id")
        .group_by("leaf")
        .len()
        .sort("len", "leaf", descending=[True, False])["leaf"]
    )


def _flat(vectors: Embeddings) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


_embedding = Lock()
"""Held while a catalogue is embedded: who comes at the same time waits, and reads what was written."""


def _stored_vectors(
    directory: Path, name: str, texts: list[str], embedder: Embedder, report: Callable[[str], None]
) -> Embeddings:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = directory / f"{name}-{embedder.name}-{digest}.npy"
    with _embedding:
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged: made again
            vectors = np.asarray(np.load(path), dtype=np.float32)
            if vectors.ndim == 2 and len(vectors) == len(texts):
                return vectors
        report(f"embedding {len(texts):,} {name} with {embedder.name}")
        vectors = embedder.embed(texts, lambda done, total: report(f"embedding {name}: {done:,} of {total:,}"))
        partial = path.with_suffix(f".{uuid4().hex}.npy")  # other processes may write the same
        try:
            directory.mkdir(parents=True, exist_ok=True)
            np.save(partial, vectors)
            partial.replace(path)
        except OSError as error:  # the data set may be read-only, or its disk full: the vectors are there all the same
            log.warning("index_not_kept", file=str(path), reason=str(error))
            with suppress(OSError):
                partial.unlink()
        return vectors
