"""Supervised fine-tuning of the agents: TRL's SFTTrainer with one LoRA adapter for all of them (section 5).

    recgpt train sft all --data runs/train/data --out runs/train/sft

The loss, and the logits, are of the answer's tokens only. A batch is one example, so that nothing is padded. A run that
was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from tools.errors import DatasetError
from tools.models import DEFAULT_MODEL, model_path

AGENTS = ("planner", "expert", "arbiter", "style", "explainer")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the report gives none, these are written on the adapter's card."""

    seed: int = 7
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    batch: int = 1
    accumulate: int = 16
    epochs: float = 1.0
    max_length: int = 4096
    evaluate_every: int = 50
    patience: int = 3
    """Evaluations without a better validation loss before it stops."""


CPU_RECIPE = Recipe()


def read_examples(data: Path, agent: str) -> tuple[pl.DataFrame, str]:
    """The examples of an agent (or `all`) and the hash of their file.

    Raises:
        DatasetError: there are none, or the file is not the one of its card.
    """
    if agent != "all" and agent not in AGENTS:
        raise DatasetError(f"there is no agent {agent!r} to train; take one of {', '.join(AGENTS)}, or all")
    try:
        content = (data / "examples.parquet").read_bytes()
        card = json.loads((data / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{data} holds no training data ({error}); make it with `recgpt train data`") from error
    if (found := hashlib.sha256(content).hexdigest()) != card["sha256"]:
        raise DatasetError(
            f"{data}/examples.parquet has SHA-256 {found}, its card says {card['sha256']}: make it again"
        )
    table = pl.read_parquet(data / "examples.parquet")
    return (table if agent == "all" else table.filter(pl.col("agent") == agent)), card["sha256"]


def train(
    agent: str,
    data: Path,
    out: Path,
    recipe: Recipe,
    examples: int | None,
    report: Callable[[str], None],
    model: str = DEFAULT_MODEL,
) -> dict[str, object]:
    """Train one adapter and write it with its card to `out/adapter`.

    Args:
        agent: one of `AGENTS`, or `all` for one adapter of all agents.
        data: what `recgpt train data` wrote.
        out: checkpoints, TensorBoard logs and the adapter; checkpoints there are continued.
        recipe: hyper-parameters.
        examples: only so many training examples, the first of the seeded order.
        report: called with a sentence.
        model: what is tuned: the default model, a directory or a hub name.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    table, digest = read_examples(data, agent)
    path = model_path(model, report)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    columns = {split: _conversations(table.filter(pl.col("split") == split)) for split in ("train", "validation")}
    train_set = Dataset.from_list(columns["train"]).shuffle(seed=recipe.seed)
    if examples is not None:
        train_set = train_set.select(range(min(examples, len(train_set))))
    config = SFTConfig(
        output_dir=str(out),
        seed=recipe.seed,
        data_seed=recipe.seed,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        num_train_epochs=recipe.epochs,
        max_length=recipe.max_length,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=recipe.evaluate_every,
        save_steps=recipe.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=5,
        report_to=["tensorboard"],
        include_num_input_tokens_seen="all",
    )
    trainer = SFTTrainer(
        model=base,
        args=config,
        train_dataset=train_set,
        eval_dataset=Dataset.from_list(columns["validation"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[EarlyStoppingCallback(recipe.patience)],
    )
    started = time.time()
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None
    report(f"{len(train_set):,} examples, {'from ' + checkpoint if checkpoint else 'from the beginning'}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(out / "adapter"))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    card: dict[str, object] = {
        "agent": agent,
        "base": model,
        "data_sha256": digest,
        "recipe": asdict(recipe),
        "examples": len(train_set),
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "validation_loss": {"first": losses[0], "best": min(losses)} if losses else {},
        "hardware": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "minutes_of_the_last_run": round((time.time() - started) / 60, 1),
        "licence": "Apache-2.0",
    }
    (out / "adapter" / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _conversations(table: pl.DataFrame) -> list[dict[str, object]]:
    return [
        {
            "prompt": [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in table.iter_rows(named=True)
    ]
