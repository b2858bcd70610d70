"""Training examples as token ids; entities of hybrid prompts are tokens beyond the vocabulary with frozen embeddings.

So trainers that know nothing of input embeddings (TRL's) read hybrid prompts as the server does (section 2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from torch import Tensor, nn

from tools.errors import DatasetError
from tools.hybrid import Reading

TAGS, ENTITIES = "tags.parquet", "entities.parquet"
"""Beside the examples: text embeddings of all leaf categories as tags, and input embeddings of entities."""
VECTORS = pl.Schema({"text": pl.String(), "vector": pl.List(pl.Float32())})
"""Of both."""


class WordsAndEntities(nn.Module):
    """The input embeddings of a model, and after its vocabulary of n words those of the entities, which never learn."""

    vectors: Tensor

    def __init__(self, words: nn.Embedding, vectors: Tensor) -> None:
        """Put entities (entities * tokens, width) beside the words."""
        super().__init__()
        self.words = words
        self.register_buffer("vectors", vectors.to(words.weight.dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Of the words, for the head that is tied to them."""
        return self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Input embeddings (..., width) of ids (...); id n + k is row k of the entities' vectors."""
        if not len(self.vectors):
            found: Tensor = self.words(ids)
            return found
        count = self.words.num_embeddings
        is_word = ids < count
        words: Tensor = self.words(torch.where(is_word, ids, 0))
        return torch.where(is_word[..., None], words, self.vectors[(ids - count).clamp(min=0)])


class Entities:
    """The entities of a training file."""

    def __init__(self, path: Path, width: int) -> None:
        """Read `entities.parquet`, none where there is no such file; `width` is that of the model's input embeddings.

        Raises:
            DatasetError: they are of a model of another width.
        """
        table = pl.read_parquet(path) if path.is_file() else pl.DataFrame(schema=VECTORS)
        sizes = set(table["vector"].list.len()) or {width}
        if any(size % width for size in sizes) or len(sizes) > 1:
            raise DatasetError(
                f"{path} has vectors of {sorted(sizes)} numbers, this model's input embeddings have {width}: "
                "make the training data for this model's adaptor"
            )
        self.tokens = sizes.pop() // width
        self.vectors = torch.tensor(table["vector"].to_list(), dtype=torch.float32).view(-1, width)
        self.row = {text: row * self.tokens for row, text in enumerate(table["text"])}


def messages_of(row: dict[str, Any]) -> list[BaseMessage]:
    """The prompt of a row of `examples.parquet`."""
    user = json.loads(row["user"]) if row["hybrid"] else row["user"]
    return [*([SystemMessage(row["system"])] if row["system"] else []), HumanMessage(user)]


def tokenized(table: pl.DataFrame, reading: Reading, entities: Entities, vocabulary: int) -> list[dict[str, list[int]]]:
    """Rows as `input_ids` and `completion_mask`, which is 1 on the answer.

    Args:
        table: of `examples.parquet`.
        reading: of the model's prompts.
        entities: of the table.
        vocabulary: n, the words of the model; ids of entities follow.
    """
    found = []
    for row in table.iter_rows(named=True):
        example = reading.example(messages_of(row), row["answer"])
        ids = example.ids.clone()
        firsts = [vocabulary + entities.row[name] for name in example.entities]
        ids[ids == reading.placeholder] = torch.tensor(
            [first + place for first in firsts for place in range(entities.tokens)], dtype=ids.dtype
        )
        mask = [0] * example.answer + [1] * (len(ids) - example.answer)
        found.append({"input_ids": ids.tolist(), "completion_mask": mask})
    return found
