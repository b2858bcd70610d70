"""The trainer on a tiny model of the default model's kind: it learns, goes on after a kill, refuses changed data."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import AS_OF, ROOT
from tools.errors import DatasetError
from training.data import SCHEMA
from training.sft import CPU_RECIPE, read_examples, train

RECIPE = replace(
    CPU_RECIPE, rank=4, learning_rate=5e-3, warmup_steps=1, accumulate=4, evaluate_every=6, max_length=128, patience=9
)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "smollm2-135m-instruct")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **size, num_key_value_heads=2, pad_token_id=2, eos_token_id=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    rows = [
        ("expert", f"u{n}", AS_OF, "validation" if n % 10 == 0 else "train", "You write tags.", f"Need {n}",
         '{"tags":["white milk","bread"]}', 2, 1)
        for n in range(50)
    ]  # fmt: skip
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(directory / "examples.parquet")
    digest = hashlib.sha256((directory / "examples.parquet").read_bytes()).hexdigest()
    (directory / "card.json").write_text(json.dumps({"sha256": digest}))
    return directory


def say(message: str) -> None:
    """Progress that nobody reads."""


def test_it_learns_and_goes_on_after_a_kill_to_the_same_weights(tiny_model: str, data: Path, tmp_path: Path) -> None:
    whole = train("all", data, tmp_path / "whole", RECIPE, None, say, tiny_model)
    losses = whole["validation_loss"]
    assert isinstance(losses, dict)
    assert losses["best"] < losses["first"]
    assert json.loads((tmp_path / "whole" / "adapter" / "card.json").read_text())["examples"] == 45
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", killed / "checkpoint-6")
    again = train("all", data, killed, RECIPE, None, say, tiny_model)
    assert again["steps"] == whole["steps"]
    assert again["validation_loss"]["best"] == pytest.approx(losses["best"], abs=1e-3)  # type: ignore[index]
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=2e-2) for key in one)


def test_data_that_is_not_its_cards_is_refused(data: Path) -> None:
    table = pl.read_parquet(data / "examples.parquet")
    table.head(10).write_parquet(data / "examples.parquet")
    with pytest.raises(DatasetError, match="its card says"):
        read_examples(data, "all")


def test_what_is_missing_is_explained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="make it with `recgpt train data`"):
        read_examples(tmp_path / "nowhere", "all")
    with pytest.raises(DatasetError, match="there is no agent 'poet'"):
        read_examples(data, "poet")
    assert read_examples(data, "planner")[0].is_empty()
