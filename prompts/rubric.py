"""Rubrics of the judge as data: `prompts/rubrics/<subject>/<dimension>.yaml`, one file a dimension (section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompts.template import DIRECTORY, PromptError

Label = Literal["negative", "neutral", "positive"]
Subject = Literal["tags", "explanations"]
Check = Literal["address", "form", "length", "language", "grounding", "catalogue"]
"""What code decides, see `agents.checks`."""
ClaimKind = Literal[
    "product", "number", "occasion", "property", "promotion", "trend", "habit", "purchase", "novelty", "promise"
]
"""What code finds in a text, see `agents.claims`."""


class Scale(BaseModel):
    """What each label means in this dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: str | None = Field(description="null: the dimension finds faults, never excellence")
    neutral: str
    negative: str


class Example(BaseModel):
    """A judged text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    label: Label
    why: str


class Rubric(BaseModel):
    """One dimension of the judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimension: str
    definition: str
    scale: Scale
    examples: list[Example] = Field(min_length=1)
    facts: list[Literal["moment", "profile", "persona", "history", "signals", "item", "shelf"]] = Field(
        min_length=1, description="what the evaluator sees beside the text"
    )

    check: Check | None = Field(None, description="code decides, and no model is asked")
    certainty: float = Field(
        0,
        ge=0,
        le=1,
        description="probability from which a model's negative counts, a less likely one is neutral: one negative "
        "makes a text Bad, so a fault that is rare should be sure",
    )
    claims_only: bool = Field(
        False,
        description="the evaluator reads the sentences in which code found a claim, if there is one: nothing else can "
        "be relevant or informative, and an order to the judge is no claim",
    )
    by_claims: list[ClaimKind] = Field(
        [],
        description="kinds of claims that decide the dimension where code has read the text, and no model is asked: "
        "negative if nothing supports one, positive if all are supported, neutral if there is none but what the item "
        "is called",
    )
    excludes: list[str] = Field(
        [],
        description="dimensions that can't be positive where a model finds this one negative: the reviewer asks again",
    )

    @model_validator(mode="after")
    def _a_check_is_not_asked_again(self) -> Rubric:
        if self.check and self.excludes:
            raise ValueError("excludes is for dimensions that a model judges: what code found stays")
        if not self.check and not self.graded:
            raise ValueError("a scale without positive is for checks: a model chooses among three labels")
        if self.check and (self.certainty or self.by_claims):
            raise ValueError("certainty and by_claims are for dimensions that a model judges")
        return self

    @property
    def graded(self) -> bool:
        """Whether the dimension is in the share of positives; one that only finds faults is not."""
        return self.scale.positive is not None


def load_rubrics(subject: Subject, directory: Path = DIRECTORY / "rubrics") -> list[Rubric]:
    """All rubrics of a subject, by file name. Reads files: call it in a thread from async code.

    Raises:
        PromptError: there is none, one is faulty, two name the same dimension, or one excludes what is none.
    """
    paths = sorted((directory / subject).glob("*.yaml"))
    if not paths:
        raise PromptError(f"{directory / subject} holds no rubric file")
    rubrics = []
    for path in paths:
        try:
            rubrics.append(Rubric.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))))
        except (yaml.YAMLError, ValidationError) as error:
            raise PromptError(f"{path} is not a valid rubric: {error}") from error
    names = [rubric.dimension for rubric in rubrics]
    if len(set(names)) < len(names):
        raise PromptError(f"{directory / subject}: two rubric files name the same dimension: {sorted(names)}")
    if unknown := sorted({name for rubric in rubrics for name in rubric.excludes} - set(names)):
        raise PromptError(f"{directory / subject}: a rubric excludes {', '.join(unknown)}, which no rubric file names")
    return rubrics
