"""Hybrid prompts as token ids: trainers that know tokens alone read what the server reads."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import AS_OF
from tools.errors import DatasetError
from tools.hybrid import Reading
from training.data import SCHEMA
from training.hybrid import VECTORS, Entities, WordsAndEntities, tokenized

USER = [
    {"type": "text", "text": "History:\n"},
    {"type": "text", "text": "[entity: milk]; [entity: bread]", "entities": ["milk", "bread"]},
    {"type": "text", "text": "\nPlan."},
]


def _table() -> pl.DataFrame:
    row = ("planner", "hybrid", "u1", AS_OF, "train", "You plan.", json.dumps(USER), '{"personas":[]}', 0, 0)
    return pl.DataFrame([(*row, True, [], [], None, "")], schema=SCHEMA, orient="row")


@pytest.mark.parametrize("tokens", [1, 2])
def test_entities_are_read_as_their_input_embeddings(tiny_model: str, tmp_path: Path, tokens: int) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    width = model.config.hidden_size
    vectors = {name: torch.randn(tokens * width) for name in ("bread", "butter", "milk")}
    pl.DataFrame(
        {"text": vectors.keys(), "vector": [v.tolist() for v in vectors.values()]}, schema=VECTORS
    ).write_parquet(tmp_path / "entities.parquet")
    entities = Entities(tmp_path / "entities.parquet", width)
    assert entities.tokens == tokens
    words = model.get_input_embeddings()
    (row,) = tokenized(_table(), Reading(tiny_model, tokens), entities, words.num_embeddings)
    ids = torch.tensor([row["input_ids"]])
    places = ids >= words.num_embeddings
    assert int(places.sum()) == 2 * tokens
    expected = words(ids.masked_fill(places, 0))
    expected[places] = torch.cat([vectors["milk"].view(tokens, width), vectors["bread"].view(tokens, width)])
    with torch.inference_mode():
        as_embeddings = model(inputs_embeds=expected).logits
        model.set_input_embeddings(WordsAndEntities(words, entities.vectors))
        assert torch.allclose(model(input_ids=ids).logits, as_embeddings, atol=1e-5)
    answer = [token for token, is_answer in zip(row["input_ids"], row["completion_mask"], strict=True) if is_answer]
    assert answer == Reading(tiny_model, tokens).title('{"personas":[]}<|im_end|>')


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["milk"], "vector": [[0.0] * 33]}, schema=VECTORS).write_parquet(
        tmp_path / "entities.parquet"
    )
    with pytest.raises(DatasetError, match="33"):
        Entities(tmp_path / "entities.parquet", 32)


def test_without_entities_only_words_are_read(tiny_model: str, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.randint(5, 500, (1, 9))
    words = model.get_input_embeddings()
    both = WordsAndEntities(words, Entities(tmp_path / "entities.parquet", 32).vectors)
    assert torch.equal(both(ids), words(ids))
