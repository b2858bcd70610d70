"""Hyper-parameters of GRPO, by machine and agent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from training.rewards import Parts

Agent = Literal["expert", "explainer"]
Shaping = Literal["crs", "sum"]

EQUAL = Parts(0.25, 0.25, 0.25, 0.25)


@dataclass(frozen=True)
class GrpoRecipe:
    """Hyper-parameters; the report gives none, these are written on the adapter's card."""

    seed: int = 7
    group: int = 8
    """G, answers to one prompt."""
    prompts: int = 4
    """Of one step."""
    steps: int = 40
    micro: int = 8
    """Answers that the gradient is computed of at a time, which bounds memory; whole groups read their prompt once."""
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    beta: float = 0.01
    """Weight of the KL penalty."""
    temperature: float = 1.0
    listed: int = 10
    """Tags of one expert that the evaluation counts: a third of HR@30, of three experts."""
    tag_tokens: int = 220
    """Bound of an expert's answer."""
    text_tokens: int = 96
    """Bound of an explanation."""
    start: float = 0.02
    """Share of the training answers that each gate of CRS would keep out at the first step, see `thresholds_at`."""
    end: float = 0.15
    """At the last step and in every evaluation."""
    threshold_answers: int = 48
    """So many of the training answers set the gates' thresholds."""
    weights: Parts = EQUAL
    """Of the parts in SUM."""
    text_diversity: float = 2.6
    """Threshold of an explanation's diversity reward: three tenths of the training texts have less."""
    evaluate_every: int = 10
    validation_prompts: int = 24
    validation_answers: int = 2
    """To each of these prompts; the trainer's own are by the same dice at each evaluation."""


CPU = GrpoRecipe()
GPU = GrpoRecipe(
    group=16,
    prompts=8,
    steps=12,
    micro=16,
    learning_rate=3e-4,
    warmup_steps=0,
    text_tokens=64,
    evaluate_every=4,
    threshold_answers=160,
    validation_prompts=48,
    validation_answers=4,
)
RECIPES: dict[str, dict[Agent, GrpoRecipe]] = {
    "cpu": {
        # The reward model reads every different tag of a group, which takes long on a CPU: at the temperature that
        # experts are served with there are fewer.
        "expert": replace(CPU, prompts=3, steps=30, temperature=0.7, validation_prompts=12),
        "explainer": CPU,
    },
    "gpu": {"expert": replace(GPU, prompts=12, steps=10, micro=32, evaluate_every=5), "explainer": GPU},
}
"""By machine and agent; those of a GPU are for minutes of one that is shared.

With few steps none is spent on warming up: the first would have a learning rate of 0.
"""
