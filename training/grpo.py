"""Reinforcement of an agent by GRPO: TRL's GRPOTrainer on the tuned agents' adapter (sections 5 and 6).

    recgpt train grpo --agent expert --data runs/train/data --out runs/train/grpo

The advantage of an answer is its reward less the mean of its group, `A_i = R_i - mean(R)`; the KL penalty is to the
adapter as it was. A run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.context import Context
from agents.schemas import ExplanationText
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import ModelFilesError, SettingError
from tools.machine import model_type
from tools.models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_digest,
    adapter_of,
    base_digest,
    base_of,
    model_path,
    sha256,
)
from training.grpo_recipe import Agent, GrpoRecipe, Shaping
from training.grpo_rewards import (
    ExpertRewards,
    ExplainerRewards,
    TagFacts,
    TagParts,
    answer_thresholds,
    open_scorer,
)
from training.grpo_rows import Row, read_rows, read_vectors
from training.grpo_trainer import policy_trainer
from training.rewards import BUFFER
from training.rollout import server_rollout
from training.runs import claim, run_trainer, trainer_arguments

HISTORY = "history.json"
"""What a run logged so far, see `training.curves`."""
THRESHOLDS = "thresholds.json"
"""In a run: of the gates, at the first step and at the last."""


def train_policy(
    agent: Agent,
    data: Path,
    dataset: Path,
    adapter: str,
    reward: str,
    shaping: Shaping,
    out: Path,
    recipe: GrpoRecipe,
    base_url: str | None,
    api_key: str,
    report: Callable[[str], None],
    command: str,
) -> dict[str, object]:
    """Continue an adapter by GRPO and write it with its card to `out/adapter`.

    Args:
        agent: whose prompts are answered.
        data: what `recgpt train data` wrote.
        dataset: what it was made from; an expert's tags are judged by its facts.
        adapter: what it starts from and is held to by the KL penalty: the default model, or an adapter's directory.
        reward: the reward model, by name or directory.
        shaping: how an expert's rewards become one.
        out: checkpoints, TensorBoard logs and the adapter; a run that stopped there goes on if it is the same one.
        recipe: hyper-parameters.
        base_url: of a vLLM server on this machine that answers in the trainer's place; None: the trainer generates.
        api_key: of that server.
        report: called with a sentence.
        command: for the card.

    Raises:
        SettingError: a server is to answer at a temperature other than 1.
        DatasetError: there is no data, or it is not that of its card.
        ModelFilesError: adapter or reward model are missing, damaged, or of another base model.
        TrainingError: a reward is no number.
        OutputError: a checkpoint could not be written, or `out` holds another run.
    """
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig

    if base_url and recipe.temperature != 1:
        raise SettingError(
            f"a server tells probabilities at temperature 1, this recipe samples at {recipe.temperature}: leave out "
            "--base-url, or take another recipe"
        )
    rows, digest = read_rows(data, agent)
    start, path = _opened(adapter, "CAUSAL_LM", report)
    judged, _ = _opened(reward, "SEQ_CLS", report)
    run: dict[str, object] = {
        "agent": agent,
        "data_sha256": digest,
        "base": base_of(start),
        "adapter": adapter,
        "adapter_sha256": adapter_digest(start),
        "reward": reward,
        "reward_sha256": adapter_digest(judged),
        "shaping": shaping if agent == "expert" else None,
        "rollouts": "vLLM server" if base_url else "transformers",
        "recipe": asdict(recipe),
    }
    claim(out, run)
    train_rows, order, held_out_rows = _drawn(rows, recipe)
    used = [*train_rows, *held_out_rows]
    train_set = Dataset.from_list([{"prompt": used[n].prompt, "row": n} for n in order])
    held_out = Dataset.from_list(
        [{"prompt": row.prompt, "row": n} for n, row in enumerate(held_out_rows, len(train_rows))]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = open_scorer(reward, device, report)
    rewards: ExpertRewards | ExplainerRewards
    if agent == "expert":
        facts = TagFacts(open_dataset(dataset), open_embedder(Context().embedding_model))
        parts = TagParts(used, scorer, facts, read_vectors(data), recipe.listed)
        answers = [row.answer for row in train_rows[: recipe.threshold_answers]]
        thresholds = answer_thresholds(parts, answers, recipe, out / THRESHOLDS, report)
        rewards = ExpertRewards(parts, recipe, shaping, thresholds)
        run["thresholds"] = [asdict(limits) for limits in thresholds]
    else:
        written = [ExplanationText.model_validate_json(row.answer).text for row in rows["train"]]
        rewards = ExplainerRewards(used, scorer, recipe, written[:BUFFER])

    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=model_type())
    policy = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    step = recipe.group * recipe.prompts
    arguments = trainer_arguments(out, recipe) | {
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
        "logging_steps": 1,
    }
    config = GRPOConfig(
        **arguments,
        num_train_epochs=1,
        per_device_train_batch_size=recipe.micro,
        gradient_accumulation_steps=step // recipe.micro,
        # All at once: TRL means over batches, and small ones would count as much as large ones.
        per_device_eval_batch_size=len(held_out_rows) * recipe.validation_answers,
        num_generations=recipe.group,
        num_generations_eval=recipe.validation_answers,
        max_completion_length=recipe.tag_tokens if agent == "expert" else recipe.text_tokens,
        temperature=recipe.temperature,
        beta=recipe.beta,
        scale_rewards="none",
        loss_type="dr_grpo",
        shuffle_dataset=False,
        eval_on_start=True,
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
    )

    class History(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        """Keeps the log where no rotation of checkpoints removes it."""

        def on_save(self, args: object, state: Any, control: object, **kwargs: object) -> None:  # noqa: ANN401
            (out / HISTORY).write_text(json.dumps(state.log_history))

        on_train_end = on_save

    trainer = policy_trainer()(
        rewards,
        model=policy,
        reward_funcs=rewards.reward,
        args=config,
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[History()],
        rollout_func=server_rollout(base_url, api_key, out / "rollout") if base_url else None,
    )
    report(f"{len(train_rows):,} prompts, {recipe.steps} steps of {recipe.prompts} times {recipe.group} answers")
    told = run_trainer(trainer, out, report, "reward")
    trained = out / "adapter"
    # Halved: what is served is bfloat16 anyway.
    trainer.model.to(torch.bfloat16)
    trainer.save_model(str(trained))
    card: dict[str, object] = {
        "command": command,
        "sha256": sha256(trained / ADAPTER_WEIGHTS),
        "base_sha256": base_digest(path),
        **run,
        "examples": len(train_rows),
        "tokens": int(trainer.state.num_input_tokens_seen),
        **told,
    }
    measured = told["validation_reward"]
    assert isinstance(measured, dict)
    if measured and measured["best"] <= measured["first"]:
        report(f"no step earned more on validation than {adapter} itself, {measured['first']:.3f}: keep that one")
    (trained / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _drawn(rows: Mapping[str, Sequence[Row]], recipe: GrpoRecipe) -> tuple[list[Row], list[int], list[Row]]:
    """Rows to train on, the order in which all steps together meet them, and rows to evaluate on.

    The order is drawn here: TRL draws another one in each epoch, and the first again when a run goes on.
    """
    generator = np.random.default_rng(recipe.seed)
    wanted = recipe.steps * recipe.prompts
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn += generator.permutation(len(rows["train"])).tolist()
    place = {number: place for place, number in enumerate(dict.fromkeys(drawn[:wanted]))}
    held = generator.permutation(len(rows["validation"]))[: recipe.validation_prompts]
    return (
        [rows["train"][number] for number in place],
        [place[number] for number in drawn[:wanted]],
        [rows["validation"][number] for number in held],
    )


def _opened(model: str, task: str, report: Callable[[str], None]) -> tuple[Path, str]:
    """An adapter's directory, and its base as a directory or hub name.

    Raises:
        SettingError: it is no adapter for this task.
        ModelFilesError: it is damaged, or of another base model.
    """
    adapter = adapter_of(model)
    kind = json.loads((adapter / ADAPTER_CONFIG).read_text())["task_type"] if adapter else "no adapter"
    if adapter is None or kind != task:
        what = "a reward model, from `recgpt train reward`" if task == "SEQ_CLS" else "one from `recgpt train sft`"
        raise SettingError(f"{model!r} is {kind}, expected an adapter {task}: {what}")
    adapter_digest(adapter)
    path = model_path(base_of(adapter), report)
    expected = json.loads((adapter / "card.json").read_text())["base_sha256"]
    if (found := base_digest(path)) != expected:
        raise ModelFilesError(
            f"{adapter} was trained on a model with SHA-256 {expected}, {path} has {found}: train it anew"
        )
    return adapter, path
