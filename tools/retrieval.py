"""Nearest neighbours by FAISS: tags to items (section 8 of the report, cognitive channel) and to leaf categories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import faiss
import numpy as np
import polars as pl

from tools.dataset import Dataset
from tools.embedding import Embedder, Embeddings
from tools.loading import load_once

Report = Callable[[str], None]


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

    def search_items(self, texts: Sequence[str], per_text: int, as_of: datetime) -> list[list[ItemMatch]]:
        """The `per_text` nearest titles of each text, an item each, best first. Blocks."""
        best = best_sellers(self.dataset, datetime.combine(as_of.date(), datetime.min.time()))
        scores, rows = self._title_index.search(self.embedder.embed(texts), min(per_text, len(self.titles)))
        return [
            [
                ItemMatch(*best[self.titles[row]], score=float(score))
                for score, row in zip(line_scores, line_rows, strict=True)
            ]
            for line_scores, line_rows in zip(scores, rows, strict=True)
        ]


def quiet(message: str) -> None:
    """A `Report` that says nothing."""


@load_once(maxsize=4)
def open_index(dataset: Dataset, embedder: Embedder, report: Report = quiet) -> CatalogIndex:
    """The index of a data set; vectors are computed once and kept in `DIR/index`, keyed by content and embedder."""
    titles = dataset.items["title"].unique().sort().to_list()
    # A leaf name may hang under several departments; its commonest path stands for it.
    paths = (
        dataset.items.group_by(pl.col("category").list.last().alias("leaf"), "category")
        .len()
        .sort("leaf", "len", pl.col("category").list.join(">"), descending=[False, True, False])
        .group_by("leaf", maintain_order=True)
        .first()
    )
    leaves = paths["category"].to_list()
    title_vectors = _stored_vectors(dataset.directory / "index", "titles", titles, embedder, report)
    leaf_vectors = _stored_vectors(dataset.directory / "index", "leaves", [p[-1] for p in leaves], embedder, report)
    return CatalogIndex(dataset, embedder, titles, leaves, _flat(title_vectors), _flat(leaf_vectors))


@load_once(maxsize=4)
def best_sellers(dataset: Dataset, before: datetime) -> dict[str, tuple[str, str, list[str]]]:
    """For each title the item most often in events before `before`: (item_id, title, category path)."""
    counts = dataset.events_before(before).group_by("item_id").len("sold")
    ranked = (
        dataset.items.select("item_id", "title", "category")
        .join(counts, on="item_id", how="left")
        .sort(pl.col("sold").fill_null(0), "item_id", descending=[True, False])
        .unique("title", keep="first", maintain_order=True)
    )
    return {title: (item, title, path) for item, title, path, _ in ranked.iter_rows()}


def _flat(vectors: Embeddings) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _stored_vectors(directory: Path, name: str, texts: list[str], embedder: Embedder, report: Report) -> Embeddings:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = directory / f"{name}-{embedder.name}-{digest}.npy"
    if not path.is_file():
        report(f"embedding {len(texts):,} {name} with {embedder.name}")
        vectors = embedder.embed(
            texts, lambda done, total: report(f"embedding {name}: {done:,} of {total:,} ({done / total:.0%})")
        )
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
    return np.asarray(np.load(path), dtype=np.float32)
