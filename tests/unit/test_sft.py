"""The trainer on a tiny model of the default model's kind: it learns, goes on after a kill, refuses changed data."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tests.conftest import AS_OF
from tools.errors import DatasetError, ModelFilesError, OutputError
from tools.models import adapter_digest, merge_adapter
from training.data import NOTHING_TO_REWARD, SCHEMA
from training.sft import RECIPES, read_examples, train, truncated_trainer

RECIPE = replace(
    RECIPES["cpu"],
    rank=4,
    learning_rate=5e-3,
    warmup_steps=1,
    accumulate=4,
    evaluate_every=6,
    max_length=128,
    patience=9,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    rows = [
        ("expert", "behaviour", f"u{n}", AS_OF, "validation" if n % 10 == 0 else "train",
         "You write tags.", f"Need {n}", '{"tags":["white milk","bread"]}', 2, 1, *NOTHING_TO_REWARD)
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
    with pytest.raises(OutputError, match=r"run\.json"):
        train("all", data, killed, RECIPE, None, say, tiny_model)
    shutil.copy(tmp_path / "whole" / "run.json", killed)
    with pytest.raises(OutputError, match="recipe"):
        train("all", data, killed, replace(RECIPE, seed=8), None, say, tiny_model)
    again = train("all", data, killed, RECIPE, None, say, tiny_model)
    assert again["steps"] == whole["steps"]
    assert again["validation_loss"]["best"] == pytest.approx(losses["best"], abs=1e-3)  # type: ignore[index]
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=2e-2) for key in one)


def test_whole_gradients_of_packed_examples_learn_the_same(tiny_model: str, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, prompt_gradient=None, batch=2, accumulate=1, packing=True)
    losses = train("all", data, tmp_path / "out", recipe, None, say, tiny_model)["validation_loss"]
    assert isinstance(losses, dict)
    assert losses["best"] < losses["first"]


def test_packed_examples_do_not_see_each_other(tiny_model: str) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    one, other = torch.randint(5, 500, (1, 9)), torch.randint(5, 500, (1, 6))
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    with torch.inference_mode():
        both = torch.cat([one, other], dim=1)
        packed = model(input_ids=both, position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(input_ids=one).logits, model(input_ids=other).logits], dim=1)
    assert torch.allclose(packed, alone, atol=1e-4)


@pytest.mark.parametrize("reach", [0, 3, 1000])
def test_a_truncated_gradient_changes_no_loss_and_ends_where_it_is_told(tiny_model: str, reach: int) -> None:
    torch.manual_seed(1)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    ids = torch.randint(5, 500, (1, 12))
    labels = ids.clone()
    labels[0, :8] = -100
    logits = model(input_ids=ids).logits[0, 7:-1]
    expected = cross_entropy(logits, ids[0, 8:], reduction="sum") / 10
    inputs = {"input_ids": ids, "labels": labels}
    trainer = truncated_trainer(reach)
    loss = trainer.compute_loss(None, model, inputs, num_items_in_batch=torch.tensor(10))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    queries = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A.default.weight
    truncated, whole = (torch.autograd.grad(value, queries, retain_graph=True)[0] for value in (loss, expected))
    assert torch.allclose(truncated, whole, rtol=1e-3, atol=1e-7) == (reach == 1000)


def test_the_shipped_form_merges_to_what_was_trained(tiny_model: str, data: Path, tmp_path: Path) -> None:
    card = train("all", data, tmp_path / "out", RECIPE, 8, say, tiny_model)
    adapter = tmp_path / "out" / "adapter"
    assert adapter_digest(adapter) == card["sha256"]
    merge_adapter(tiny_model, adapter, tmp_path / "merged", say)
    ids = torch.randint(5, 500, (1, 12))
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.inference_mode():
        untuned, found = base(ids).logits, merged(ids).logits
        expected = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    assert (found - expected).abs().max() < 0.1 * (untuned - expected).abs().max()


def test_an_adapter_of_another_base_or_with_other_weights_is_refused(
    tiny_model: str, data: Path, tmp_path: Path
) -> None:
    train("all", data, tmp_path / "out", RECIPE, 4, say, tiny_model)
    adapter = tmp_path / "out" / "adapter"
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"another model")
    with pytest.raises(ModelFilesError, match="was trained on a model with SHA-256"):
        merge_adapter(str(other), adapter, tmp_path / "merged", say)
    (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFilesError, match="its card says"):
        adapter_digest(adapter)
    (adapter / "card.json").unlink()
    with pytest.raises(ModelFilesError, match="no adapter of ours"):
        adapter_digest(adapter)


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
