"""Targets for stylist and explainer: a guideline, and a text in it whose every fact stands in the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from agents.schemas import ExplanationTask, ExplanationText, StyleGuideline
from agents.wording import occasion_of

PHRASES_FILE = Path(__file__).parent / "phrases.yaml"

Ground = Literal["habit", "companion", "signal", "occasion"]
"""What an explanation rests on: own purchases of the item, of another one, a signal about the item, a holiday."""
GROUNDS: tuple[Ground, ...] = ("occasion", "signal", "habit", "companion")
FIXED_DEVICE = "plain fact"
"""What a text is built by that answers a prompt without a style guideline, the baseline's."""


class Noun(str):
    """A name in a pattern: `{item}` is the name itself, `{item:is|are}` the form of a verb that agrees with it."""

    def __format__(self, forms: str) -> str:
        """The name, or one of two forms."""
        if not forms:
            return str(self)
        one, many = forms.split("|")
        return many if self.endswith("s") and not self.endswith("ss") else one


class Phrases(BaseModel):
    """`phrases.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tones: list[str]
    audiences: dict[Literal["children", "couple", "single", "unknown"], list[str]]
    rhetoric: dict[str, dict[Ground, list[str]]]
    tails: list[str]


@lru_cache(maxsize=1)
def load_phrases() -> Phrases:
    """Read and validate `phrases.yaml`."""
    return Phrases.model_validate(yaml.safe_load(PHRASES_FILE.read_text(encoding="utf-8")))


def explanation_target(
    task: ExplanationTask, purpose: str, rng: np.random.Generator, device: str | None = None
) -> tuple[StyleGuideline, ExplanationText] | None:
    """A guideline and a text for one item, drawn from `rng`; the build varies, the facts are those of the task.

    None where the task has no fact to speak of.

    Args:
        task: the item, the persona's evidence and the signals.
        purpose: what the persona's need is for, in words.
        rng: source of the choices.
        device: of rhetoric, one of `phrases.yaml`; drawn where none is given.
    """
    phrases = load_phrases()
    slots = _facts(task, purpose)
    grounds: list[Ground] = [ground for ground in GROUNDS if _known(ground, slots)]
    if not grounds:
        return None
    ground = grounds[int(rng.integers(len(grounds)))]
    device = device or _one(list(phrases.rhetoric), rng)
    fitting = [text for text in phrases.rhetoric[device][ground] if _slots(text) <= slots.keys()]
    text = _one(fitting, rng).format(**slots)
    tails = [tail for tail in phrases.tails if _slots(tail) <= slots.keys()]
    text = f"{text} {_one(tails, rng).format(**slots)}".strip()
    text = re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    words = len(text.split())
    season = slots.get("holiday") or slots.get("season") or "none"
    style = StyleGuideline(
        tone=_one(phrases.tones, rng),
        audience=_one(phrases.audiences[_audience(task.profile)], rng),
        rhetoric=device,
        season=season if ground in ("occasion", "signal") else "none",
        words=min(max(8, words + int(rng.integers(0, 4))), 40),
    )
    return style, ExplanationText(text=text)


def _facts(task: ExplanationTask, purpose: str) -> dict[str, str]:
    leaf = task.item.category[-1]
    slots = {"item": Noun(leaf.lower()), "purpose": purpose}
    _, named, size = task.item.title.rpartition(f"{leaf}, ")
    if named:
        slots["size"] = size
    others = [line for line in task.evidence if line.leaf and line.leaf != leaf]
    bought = [line.times for line in task.own if line.action == "purchase"]
    if bought and bought[0] > 1:
        slots["times"] = str(bought[0])
    elif others:
        slots["other"] = Noun(str(others[0].leaf).lower())
    for signal in task.signals:
        if signal.kind == "holiday" and "holiday" not in slots and " in " in signal.text:
            slots |= {"holiday": str(occasion_of(signal)), "ahead": f"in {signal.text.rpartition(' in ')[2]}"}
        if signal.kind == "season":
            slots["season"] = str(occasion_of(signal))
        if signal.kind == "trend" and leaf in signal.categories:
            slots["leaf_signal"] = leaf
    return slots


def _known(ground: Ground, slots: dict[str, str]) -> bool:
    needed = {"habit": "times", "companion": "other", "signal": "leaf_signal", "occasion": "holiday"}[ground]
    return needed in slots


def _audience(profile: str | None) -> Literal["children", "couple", "single", "unknown"]:
    if profile is None:
        return "unknown"
    if "no children" not in profile and "child" in profile:
        return "children"
    return "single" if "household of 1" in profile else "couple" if "household of 2" in profile else "unknown"


def _slots(text: str) -> set[str]:
    return {re.split("[:}]", part)[0] for part in text.split("{")[1:]}


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
