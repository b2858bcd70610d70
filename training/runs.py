"""What all trainers share: whose checkpoints a directory holds, and how long a run took."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

from tools.errors import OutputError


def claim(out: Path, run: dict[str, object]) -> None:
    """Note what `out` is for, so that checkpoints are gone on with by the same run only.

    Raises:
        OutputError: it has a run of other data or settings, or checkpoints of an unknown one.
    """
    note = out / "run.json"
    if note.is_file():
        found = json.loads(note.read_text())
        if keys := sorted(key for key in found | run if found.get(key) != run.get(key)):
            raise OutputError(f"{out} holds another run ({', '.join(keys)} differ); give another --out, or remove it")
    elif list(out.glob("checkpoint-*")):
        raise OutputError(f"{out} holds checkpoints without run.json, which tells what they are of; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(run, indent=2) + "\n")


def trained_seconds(history: list[dict[str, float]]) -> float:
    """Time that training took, over all its runs: the clock of the log starts anew with each."""
    clock = [entry["train_runtime"] for entry in history if "loss" in entry and "train_runtime" in entry]
    return sum(now for now, after in zip_longest(clock, clock[1:], fillvalue=0.0) if after < now)
