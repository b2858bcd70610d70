"""What is bought for an occasion: common knowledge about holidays, laid on the categories of a catalogue.

One year of purchases has seen no Thanksgiving before it comes. What belongs to one is common knowledge, and how much
such things rise before any holiday the ranker learns from those that the year has seen already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.loading import load_once
from tools.retrieval import embed_catalog, leaf_paths
from tools.signals import holidays_between

OCCASIONS = Path(__file__).with_name("occasions.yaml")
"""By country and holiday, the things that are bought for it."""
LEAST_SIMILARITY = 0.5
"""Cosine below which a category has nothing to do with a thing; chosen on holidays up to Halloween."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Occasions:
    """How well each leaf of a catalogue goes with each occasion."""

    country: str
    leaves: int
    """How many there are, n, in the order of `tools.retrieval.leaf_paths`."""
    fits: Mapping[str, Scores]
    """By holiday, (n,): 1 where the leaf is one of its things, 0 where it has nothing to do with any."""

    def between(self, day: date, first: int, last: int) -> Scores:
        """Fit to what is celebrated `first` to `last` days after a day, both included, the best of them, (n,)."""
        best = np.zeros(self.leaves, dtype=np.float32)
        for _, name in holidays_between(day + timedelta(days=first), day + timedelta(days=last), self.country):
            np.maximum(best, self.fits.get(name, best), out=best)
        return best


def no_occasions(dataset: Dataset) -> Occasions:
    """Where nothing tells which leaf goes with what."""
    return Occasions(dataset.info.country, len(leaf_paths(dataset)), {})


@load_once(maxsize=4)
def open_occasions(dataset: Dataset, embedder: Embedder) -> Occasions:
    """The occasions of a data set's country, found in its catalogue. Blocks.

    A leaf fits as well as its name's cosine to the nearest thing, from `LEAST_SIMILARITY` (0) to 1. A country without a
    list has no occasions.
    """
    leaves = embed_catalog(dataset, embedder)[1]
    country = dataset.info.country
    things: Mapping[str, list[str]] = yaml.safe_load(OCCASIONS.read_text(encoding="utf-8")).get(country, {})
    similar = {name: (leaves @ embedder.embed(named).T).max(axis=1) for name, named in things.items()}
    fits = {name: ((cosine - LEAST_SIMILARITY) / (1 - LEAST_SIMILARITY)).clip(0, 1) for name, cosine in similar.items()}
    return Occasions(country, len(leaves), fits)
