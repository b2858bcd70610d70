"""Rubrics of the judge as data: `prompts/rubrics/<subject>/<dimension>.yaml`, one file a dimension (section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompts.template import DIRECTORY, PromptError

Label = Literal["negative", "neutral", "positive"]
Subject = Literal["tags", "explanations"]
Check = Literal["address", "form", "length", "language", "claims", "reason", "catalogue"]
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

    check: Check | None = Field(None, description="code decides, and no model is asked unless `or_model` says so")
    claims: list[ClaimKind] = Field([], description="kinds of claims that the check `claims` looks at")
    or_model: bool = Field(False, description="a model labels the texts of which the check can't tell")
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
    excludes: list[str] = Field(
        [],
        description="dimensions that can't be positive where a model finds this one negative: the reviewer asks again",
    )

    @model_validator(mode="after")
    def _what_a_model_needs_is_for_models(self) -> Rubric:
        if self.or_model and not self.check:
            raise ValueError("or_model is for dimensions with a check: without one a model judges anyway")
        if bool(self.claims) != (self.check == "claims"):
            raise ValueError("claims is what the check `claims` looks at: one needs the other")
        if self.asks_model and not self.graded:
            raise ValueError("a scale without positive is for checks: a model chooses among three labels")
        if not self.asks_model and (self.excludes or self.certainty or self.claims_only):
            raise ValueError("excludes, certainty and claims_only are for dimensions that a model judges")
        return self

    @property
    def asks_model(self) -> bool:
        """Whether a model judges the dimension, of all texts or of those where the check can't tell."""
        return self.check is None or self.or_model

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
