"""Graph states: every key that a node may return, with the reducer of those that several nodes write."""

from __future__ import annotations

from datetime import datetime
from operator import add
from typing import Annotated, Any, get_type_hints

from langgraph.types import Overwrite
from typing_extensions import TypedDict

from agents.schemas import (
    CallRecord,
    Claim,
    DimensionLabel,
    Doubt,
    Fact,
    Failure,
    Household,
    Persona,
    ProposedTag,
    RecommendedItem,
    Rejection,
    StyleGuideline,
    Tag,
    Usage,
    Verdict,
)
from prompts.rubric import Rubric, Subject
from tools.history import EventLine, HistoryLine
from tools.shelf import ShelfLine
from tools.signals import Signal


def new_run(state: type) -> dict[str, Any]:
    """Empties all that nodes add to: what the first node of a graph returns beside its own.

    A thread (of Studio, or of a checkpointer) keeps its state from one input to the next, of which nothing belongs into
    another request's answer.
    """
    hints = get_type_hints(state, include_extras=True)
    return {key: Overwrite([]) for key, hint in hints.items() if add in getattr(hint, "__metadata__", ())}


class Trail(TypedDict, total=False):
    """What every agent leaves behind, joined from all branches."""

    calls: Annotated[list[CallRecord], add]
    rejected: Annotated[list[Rejection], add]
    failures: Annotated[list[Failure], add]
    degraded: Annotated[list[str], add]


class IntentState(Trail, total=False):
    """State of the graphs `intent` and `routes`; only the latter reads plain events."""

    user_id: str
    as_of: datetime
    household: Household
    events: list[EventLine]
    history_lines: int
    history_lines_cut: int
    personas: list[Persona]
    shelves: list[list[ShelfLine]]
    pool: Annotated[list[ProposedTag], add]
    tags: list[Tag]


class JudgedSubject(TypedDict):
    """A verdict and what it is about."""

    subject_id: str
    verdict: Verdict


class Explained(Trail, total=False):
    """Output of the graph `explanation`."""

    explained: Annotated[list[RecommendedItem], add]


class ExplanationState(Explained, total=False):
    """State of the graph `explanation`: its task, key by key, and what comes of it."""

    user_id: str
    as_of: datetime
    profile: str | None
    persona: Persona | None
    evidence: list[HistoryLine]
    item: RecommendedItem
    signals: list[Signal]
    style: StyleGuideline


class Judged(Trail, total=False):
    """Output of the graph `judge`."""

    judged: Annotated[list[JudgedSubject], add]


class JudgeState(Judged, total=False):
    """State of the graph `judge`: its task, key by key, and what comes of it."""

    user_id: str
    kind: Subject
    subject_id: str
    subject: str
    facts: list[Fact]
    claims: list[Claim] | None
    rubrics: list[Rubric]
    labels: Annotated[list[DimensionLabel], add]
    doubt: Doubt | None


class RecommendState(IntentState, Explained, Judged, total=False):
    """State of the graphs `recommend` and `recgpt_v1`: that of `intent` or `routes`, and what is built upon it."""

    started: float
    settings: dict[str, Any]
    items: list[RecommendedItem]
    usage: Usage
