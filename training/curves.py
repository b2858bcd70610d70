"""Learning curves of GRPO runs, beside each other in one figure.

recgpt train curves runs/train/grpo runs/train/grpo-sum --out curves.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tools.errors import OutputError
from training.grpo import HISTORY

PANELS = {
    "reward": "reward",
    "accuracy": "R_acc",
    "alignment": "R_align",
    "diversity": "R_div",
    "length": "R_len",
    "grad_norm": "gradient norm",
    "kl": "KL to the start",
    "dead_groups": "share of dead groups",
    "valid": "share of valid answers",
}
"""Keys of the log and what they are called."""
COLUMNS = 3

Log = Sequence[Mapping[str, Any]]


def read_history(run: Path) -> Log:
    """What a run logged, an entry a step and one an evaluation: its history, or that of its last checkpoint.

    Raises:
        OutputError: it has neither.
    """
    checkpoints = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    try:
        if (run / HISTORY).is_file():
            log: Log = json.loads((run / HISTORY).read_text())
        elif checkpoints:
            log = json.loads(checkpoints[-1].read_text())["log_history"]
        else:
            raise OutputError(f"{run} has neither {HISTORY} nor a checkpoint: it holds no run of `recgpt train grpo`")
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"the log of the run in {run} can't be read ({error!r})") from error
    return log


def curve(log: Log, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key, where it has a value."""
    points = {int(entry["step"]): float(entry[key]) for entry in log if entry.get(key) is not None}
    return list(points), list(points.values())


def draw_curves(runs: Sequence[Path], out: Path) -> None:
    """A panel a key, a line a run; dots are evaluations, at the last thresholds.

    Args:
        runs: their `--out` directories.
        out: PNG or whatever the name ends in.

    Raises:
        OutputError: a run has no log.
    """
    logs = {str(run): read_history(run) for run in runs}
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(-(-len(PANELS) // COLUMNS), COLUMNS).flatten()
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        for number, (name, log) in enumerate(logs.items()):
            axes.plot(*curve(log, key), color=f"C{number}", label=name, linewidth=1.2)
            axes.plot(*curve(log, f"eval_{key}"), color=f"C{number}", linestyle="--", marker=".", linewidth=0.7)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-COLUMNS:]:
        axes.set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(logs), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
