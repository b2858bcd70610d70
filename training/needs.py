"""Household needs: which shelves belong to one intent, and the words that training targets are made of.

`needs.yaml` is data: each category of the catalogue belongs to one need; occasions tie holidays to needs;
sentences are the builds of a persona's intent.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

NEEDS_FILE = Path(__file__).parent / "needs.yaml"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Need(_Entry):
    """One need of a household: the persona names and purposes that may describe it, and its shelves."""

    key: str
    names: list[str] = Field(min_length=3)
    purposes: list[str] = Field(min_length=3)
    categories: list[str]


class Occasion(_Entry):
    """A holiday, as the signals name it, and the needs that it touches."""

    signal: str
    needs: list[str]
    words: list[str] = Field(min_length=3)


class Sentences(_Entry):
    """Builds of an intent, by what the evidence says."""

    restock: list[str]
    explore: list[str]
    occasion: list[str]
    fresh: list[str]


class Needs(_Entry):
    """The whole file."""

    needs: list[Need]
    occasions: list[Occasion]
    sentences: Sentences

    @model_validator(mode="after")
    def _consistent(self) -> Needs:
        keys = {need.key for need in self.needs}
        shelves = [category for need in self.needs for category in need.categories]
        if twice := sorted({shelf for shelf in shelves if shelves.count(shelf) > 1}):
            raise ValueError(f"categories of more than one need: {twice}")
        if unknown := sorted({key for occasion in self.occasions for key in occasion.needs} - keys):
            raise ValueError(f"occasions name needs that are not there: {unknown}")
        return self

    def by_category(self) -> dict[str, Need]:
        """The need of each category."""
        return {category: need for need in self.needs for category in need.categories}


@lru_cache(maxsize=1)
def load_needs() -> Needs:
    """Read and validate `needs.yaml`."""
    return Needs.model_validate(yaml.safe_load(NEEDS_FILE.read_text(encoding="utf-8")))
