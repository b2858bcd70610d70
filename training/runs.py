"""What all trainers share: how often they save and evaluate, how they go on, and what a card tells of a run."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from tools.errors import OutputError, SettingError


class Schedule(Protocol):
    """What every recipe has."""

    @property
    def seed(self) -> int:
        """Of weights and order."""

    @property
    def learning_rate(self) -> float:
        """The highest, after warming up; it falls by a cosine."""

    @property
    def warmup_steps(self) -> int:
        """Until it is reached."""

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations, each of which is a checkpoint too."""


def trainer_arguments(out: Path, schedule: Schedule) -> dict[str, Any]:
    """Arguments of `transformers.TrainingArguments`: checkpoints in `out`, the best of which is kept."""
    import torch

    return {
        "output_dir": str(out),
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "learning_rate": schedule.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": schedule.evaluate_every,
        "save_steps": schedule.evaluate_every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 5,
        "report_to": ["tensorboard"],
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def run_trainer(
    trainer: Any,  # noqa: ANN401
    out: Path,
    report: Callable[[str], None],
    metric: str = "loss",
) -> dict[str, object]:
    """Train from the last checkpoint in `out`, if there is one; what a card tells of a run.

    Args:
        trainer: a `transformers.Trainer` whose arguments are those of `trainer_arguments`.
        out: claimed for this run, see `claim`.
        report: called with a sentence.
        metric: what the best checkpoint is chosen by, `metric_for_best_model` without its `eval_`.

    Raises:
        SettingError: there are several GPUs.
        OutputError: a checkpoint could not be written.
    """
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    if trainer.args.n_gpu > 1:
        raise SettingError(
            f"{trainer.args.n_gpu} GPUs are visible, and batches are made for one: set CUDA_VISIBLE_DEVICES=0"
        )
    _remove_unfinished_checkpoints(out, report)
    started = time.monotonic()

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_log(self, args: object, state: Any, control: object, **kwargs: object) -> None:  # noqa: ANN401
            state.log_history[-1]["clock"] = time.monotonic() - started

    trainer.add_callback(Clock())
    checkpoint = get_last_checkpoint(str(out))
    report(f"training {'from ' + checkpoint if checkpoint else 'from the beginning'}")
    # The first evaluation is in the log of a run that goes on already.
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise OutputError(
            f"a checkpoint in {out} could not be written ({error}): the disk is full. The last whole checkpoint is "
            "kept: free some space, and the same command goes on from there"
        ) from error
    key = f"eval_{metric}"
    values = [entry[key] for entry in trainer.state.log_history if key in entry]
    gpu = torch.cuda.is_available()
    return {
        "steps": trainer.state.global_step,
        f"validation_{metric}": {"first": values[0], "best": trainer.state.best_metric} if values else {},
        "hardware": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "minutes": round(trained_seconds(trainer.state.log_history) / 60, 1),
        "licence": "Apache-2.0",
    }


def _is_failed_write(error: Exception) -> bool:
    """Whether it says that a disk is full, in the words of Python, of safetensors, or of torch's writer."""
    words = ("No space left on device", "os error 28", "inline_container", "file write failed")
    return getattr(error, "errno", None) == errno.ENOSPC or any(said in str(error) for said in words)


def _remove_unfinished_checkpoints(out: Path, report: Callable[[str], None]) -> None:
    """Those that a kill or a full disk left half-written: the trainer's state is written last."""
    for checkpoint in out.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            report(f"{checkpoint} is not whole: it is removed")
            shutil.rmtree(checkpoint)


def claim(out: Path, run: dict[str, object]) -> None:
    """Note what `out` is for, so that checkpoints or answers are gone on with by the same run only.

    Raises:
        OutputError: it has a run of other data or settings, or results of an unknown one.
    """
    note = out / "run.json"
    if note.is_file():
        found = json.loads(note.read_text())
        if keys := sorted(key for key in found | run if found.get(key) != run.get(key)):
            raise OutputError(f"{out} holds another run ({', '.join(keys)} differ); give another --out, or remove it")
    elif list(out.glob("checkpoint-*")) + list(out.glob("*.jsonl")):
        raise OutputError(f"{out} holds results without run.json, which tells what they are of; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(run, indent=2) + "\n")


def trained_seconds(history: list[dict[str, float]]) -> float:
    """Time that training took, over all its runs: the clock of the log, see `run_trainer`, starts anew with each."""
    clock = [entry["clock"] for entry in history if "clock" in entry]
    return sum(now for now, after in zip_longest(clock, clock[1:], fillvalue=0.0) if after < now)
