"""What the training examples teach and how many of each: `mixture.yaml` and `neutral.yaml` are data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from tools.machine import model_type

MIXTURE_FILE = Path(__file__).parent / "mixture.yaml"
NEUTRAL_FILE = Path(__file__).parent / "neutral.yaml"

ExpertKind = Literal["behaviour", "trending", "weather", "situational"]
GENERAL_BATCH = 48
GENERAL_TOKENS = 48
"""Longest general answer."""


class Mixture(BaseModel):
    """`mixture.yaml`: shares of the experts' kinds and of general data; other agents' examples for each expert's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: dict[ExpertKind, float] = Field(min_length=1)
    general: float = Field(ge=0)
    per_expert: dict[
        Literal["planner", "arbiter", "style", "explainer", "perception"],
        dict[Literal["behaviour", "hybrid", "fixed"], float],
    ]

    def quota(self, experts: int, absent: frozenset[str]) -> dict[tuple[str, str], int]:
        """How many examples of each (agent, kind) go with so many experts' examples.

        Args:
            experts: examples of experts, all kinds together.
            absent: kinds that the data set can't have.
        """
        shares = {kind: share for kind, share in self.experts.items() if kind not in absent}
        whole = sum(shares.values())
        return {
            **{("expert", kind): round(experts * share / whole) for kind, share in shares.items()},
            **{
                (agent, kind): round(experts * share)
                for agent, kinds in self.per_expert.items()
                for kind, share in kinds.items()
            },
            ("general", "general"): round(experts * self.general / sum(self.experts.values())),
        }


class Neutral(BaseModel):
    """`neutral.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    forms: list[str]
    topics: list[str]


def load_mixture(path: Path = MIXTURE_FILE) -> Mixture:
    """Read and validate a mixture."""
    return Mixture.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def load_neutral() -> Neutral:
    """Read and validate `neutral.yaml`."""
    return Neutral.model_validate(yaml.safe_load(NEUTRAL_FILE.read_text(encoding="utf-8")))


def general_examples(count: int, path: str, seed: int, report: Callable[[str], None]) -> list[tuple[str, str]]:
    """`count` neutral prompts with the base model's own answers to them, sampled at temperature 0.7.

    Args:
        count: how many; no more than there are forms times topics.
        path: directory or hub name of the base model.
        seed: of the prompts' order and of sampling.
        report: called with a sentence on the progress.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    neutral = load_neutral()
    every = [form.format(topic=topic) for form in neutral.forms for topic in neutral.topics]
    prompts = [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:count]]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype=model_type())
    torch.manual_seed(seed)
    answers: list[str] = []
    for start in range(0, len(prompts), GENERAL_BATCH):
        batch = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + GENERAL_BATCH]]
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=True,
                temperature=0.7,
                top_p=0.9,
                max_new_tokens=GENERAL_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [_whole_sentences(text) for text in texts]
        report(f"general examples: {len(answers):,} of {len(prompts):,}")
    return [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]


def _whole_sentences(text: str) -> str:
    """The text up to its last whole sentence: what was cut off must not teach to stop anywhere."""
    text = text.strip()
    end = max(text.rfind(mark) for mark in ".?!")
    return text[: end + 1] if end > 0 else ""
