"""Supervised fine-tuning of the agents: TRL's SFTTrainer with one LoRA adapter for all of them (section 5).

    recgpt train sft all --data runs/train/data --out runs/train/sft

The loss is of the answer's tokens only. Planner and arbiter read hybrid prompts too, see `training.hybrid`. Nothing is
padded: on a CPU a batch is one example, on a GPU examples are packed. A run that was killed goes on from its last
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tools.errors import DatasetError
from tools.hybrid import Reading
from tools.machine import model_type
from tools.models import ADAPTER_WEIGHTS, BASE_MODEL, base_digest, model_path, sha256, weights_name
from training.hybrid import ENTITIES, Entities, WordsAndEntities, tokenized
from training.runs import claim, run_trainer, trainer_arguments

TUNED_AGENTS = ("planner", "expert", "arbiter", "style", "explainer", "evaluator", "one_shot", "reviewer")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the report gives none, these are written on the adapter's card."""

    seed: int = 7
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 8
    batch: int = 1
    accumulate: int = 16
    epochs: float = 1.0
    max_length: int = 4096
    evaluate_every: int = 20
    patience: int = 3
    """Evaluations without a better validation loss before it stops."""
    validation_examples: int = 40
    """Seen by each evaluation, the first of a seeded order; validation has more."""
    packing: bool = False
    """Whether sequences of `max_length` hold several examples, which do not see each other."""
    prompt_gradient: int | None = 0
    """How many of the prompt's last tokens the gradient reaches; the rest is read forward only, None for all.

    A prompt is ten times as long as its answer. Its forward pass costs a third of forward and backward, so on a CPU
    a truncated gradient sees twice the examples in the same time.
    """


RECIPES = {
    "cpu": Recipe(),
    "judge": Recipe(evaluate_every=40, validation_examples=120, max_length=2048, prompt_gradient=128),
    "gpu": Recipe(
        learning_rate=1e-3,
        warmup_steps=20,
        # TRL packs a batch into one row, and attention without the flash kernel is over the square of its length.
        batch=1,
        accumulate=4,
        epochs=2.0,
        evaluate_every=60,
        validation_examples=120,
        packing=True,
        prompt_gradient=None,
    ),
}
"""By machine, and one for the judge on a CPU: its prompts are short, and its answers hang on few of their words.

A GPU has the speed for whole gradients, packed batches and two epochs over more examples.
"""


def read_examples(data: Path, agent: str) -> tuple[pl.DataFrame, str]:
    """The examples of an agent (or `all`) and the hash of their file.

    Raises:
        DatasetError: there are none, or the file is not the one of its card.
    """
    if agent != "all" and agent not in TUNED_AGENTS:
        raise DatasetError(f"there is no agent {agent!r} to train; take one of {', '.join(TUNED_AGENTS)}, or all")
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
    model: str = BASE_MODEL,
    command: str = "",
) -> dict[str, object]:
    """Train one adapter and write it with its card to `out/adapter`.

    Args:
        agent: one of `TUNED_AGENTS`, or `all` for one adapter of all agents.
        data: what `recgpt train data` wrote.
        out: checkpoints, TensorBoard logs and the adapter; a run that stopped there goes on if it is the same one.
        recipe: hyper-parameters.
        examples: only so many training examples, the first of the seeded order.
        report: called with a sentence.
        model: what is tuned: the base of the default model, a directory or a hub name.
        command: what the card says how this was made.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback
    from trl import SFTConfig, SFTTrainer

    table, digest = read_examples(data, agent)
    path = model_path(model, report)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=model_type())
    words = base.get_input_embeddings()
    entities = Entities(data / ENTITIES, base.config.hidden_size)
    base.set_input_embeddings(WordsAndEntities(words, entities.vectors))
    reading = Reading(path, entities.tokens)
    columns = {
        split: tokenized(table.filter(pl.col("split") == split), reading, entities, words.num_embeddings)
        for split in ("train", "validation")
    }
    train_set = Dataset.from_list(columns["train"]).shuffle(seed=recipe.seed)
    held_out = Dataset.from_list(columns["validation"]).shuffle(seed=recipe.seed)
    held_out = held_out.select(range(min(recipe.validation_examples, len(held_out))))
    if examples is not None:
        train_set = train_set.select(range(min(examples, len(train_set))))
    config = SFTConfig(
        **trainer_arguments(out, recipe),
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        packing=recipe.packing,
        eval_packing=False,
        gradient_accumulation_steps=recipe.accumulate,
        num_train_epochs=recipe.epochs,
        max_length=recipe.max_length,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        include_num_input_tokens_seen="all",
    )
    trainer = (SFTTrainer if recipe.prompt_gradient is None else truncated_trainer(recipe.prompt_gradient))(
        model=base,
        args=config,
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[EarlyStoppingCallback(recipe.patience)],
    )
    claim(
        out,
        {
            "agent": agent,
            "base": weights_name(model),
            "data_sha256": digest,
            "examples": len(train_set),
            "recipe": asdict(recipe),
        },
    )
    report(f"{len(train_set):,} examples")
    told = run_trainer(trainer, out, report)
    adapter = out / "adapter"
    # Halved: what is served is bfloat16 anyway, and the adapter travels with the project.
    trainer.model.to(torch.bfloat16)
    trainer.save_model(str(adapter))
    card: dict[str, object] = {
        "agent": agent,
        "command": command,
        "sha256": sha256(adapter / ADAPTER_WEIGHTS),
        "base": model,
        "base_sha256": base_digest(path),
        "data_sha256": digest,
        "recipe": asdict(recipe),
        "examples": len(train_set),
        "tokens": int(trainer.state.num_input_tokens_seen),
        **told,
    }
    (adapter / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def truncated_trainer(prompt_gradient: int) -> type[Any]:
    """SFTTrainer whose gradient reaches the answer and the prompt's last `prompt_gradient` tokens, one example a batch.

    The loss is that of the whole model; only where the gradient ends is different. Logits are made for the answer's
    positions alone.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    class TruncatedTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
        """See `truncated_trainer`."""

        def compute_loss(
            self,
            model: Any,  # noqa: ANN401 (a PeftModel)
            inputs: dict[str, torch.Tensor],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | None = None,
        ) -> Any:  # noqa: ANN401 (a loss, or a pair with the outputs)
            """Mean cross-entropy of the answer's tokens, over the whole accumulated batch."""
            ids, labels = inputs["input_ids"], inputs["labels"]
            answer = int((labels[0] != -100).nonzero()[0])
            start = max(0, answer - 1 - prompt_gradient)
            language_model = model.get_base_model()
            past = None
            if start:
                with torch.no_grad():
                    past = language_model.model(input_ids=ids[:, :start], use_cache=True).past_key_values
            hidden = language_model.model(input_ids=ids[:, start:-1], past_key_values=past).last_hidden_state
            logits = language_model.lm_head(hidden[:, answer - 1 - start :]).float()
            total = cross_entropy(logits[0], labels[0, answer:], reduction="sum")
            loss = total / (labels.shape[1] - answer if num_items_in_batch is None else num_items_in_batch)
            return (loss, {"logits": logits}) if return_outputs else loss

    return TruncatedTrainer
