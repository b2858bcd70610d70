"""What the agents exchange. The same classes make the JSON schemas, validate the answers and are the output format.

An answer's schema depends on its request (the ids that exist, how many tags are asked), so `plan_schema` and its
like derive a class with those bounds; a field that the server holds to a bound is validated by the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NaiveDatetime,
    StringConstraints,
    WithJsonSchema,
    create_model,
    field_validator,
)

from prompts.rubric import ClaimKind, Label, Rubric, Subject
from tools.history import DayLine, EventLine, HistoryLine
from tools.shelf import ShelfLine
from tools.signals import Signal

Grade = Literal["Superior", "Average", "Bad"]
Channel = Literal["cognitive", "habit", "towers", "popular"]
"""From tags; of the utility channel: own history, the towers; and what all buy, where the others propose too little."""


class Record(BaseModel):
    """Base of what is passed on: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Answer(Record):
    """Base of what a model answers; blanks around its texts do not count."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


# ---- requests -------------------------------------------------------------------------------------------------


class Request(Record):
    """One household at one moment: the input of the graphs `intent`, `recommend` and `recgpt_v1`."""

    user_id: str = Field(min_length=1)
    as_of: datetime = Field(
        description="the moment of the request; without an offset it is in the data set's time zone"
    )


class Persona(Record):
    """One intent facet p_k (section 4), with what supports it."""

    name: str
    intent: str
    evidence: list[HistoryLine]
    signals: list[Signal]


class ProposedTag(Record):
    """A tag of one expert, before the arbiter."""

    tag: str
    persona: str


class Tag(Record):
    """A final item tag: the arbiter's pick, grounded in the catalogue."""

    tag: str
    persona: str
    category: list[str] = Field(
        description="the nearest leaf category, as a path from root to leaf; empty before grounding"
    )
    score: float = Field(description="cosine of the tag as the expert wrote it and that leaf's name")
    reason: str
    source: Literal["model", "rewritten"] = Field(
        description="rewritten: grounding replaced the tag by the leaf's name"
    )
    proposed: str = Field(description="the tag as the expert wrote it")


class StyleGuideline(Answer):
    """The style guideline g (section 6, stage 1)."""

    tone: str = Field(min_length=3, max_length=40)
    audience: str = Field(min_length=3, max_length=60)
    rhetoric: str = Field(min_length=3, max_length=60)
    season: str = Field(min_length=3)
    """An occasion of the signals, however long its name, or none."""
    words: int = Field(ge=8, le=40)


class Claim(Record):
    """Something that an explanation says of the item, the household or the moment, and what it rests on."""

    text: str = Field(description="words of the explanation")
    kind: ClaimKind
    support: str | None = Field(
        description="id of the history line or signal that says it, or item, shelf, moment; None: nothing does"
    )


class DimensionLabel(Record):
    """One evaluator's label."""

    dimension: str
    label: Label
    evidence: str = Field(description="words of the input that decided")
    probability: float | None = Field(
        description="of the label among the three, by the server's log-probabilities; None where code decided, or the "
        "server tells none"
    )
    by_code: bool = Field(False, description="a check decided, and no model")


class Doubt(Record):
    """Why the reviewer sends a dimension back: a label that its own excludes."""

    sent_back: str = Field(description="the dimension that is to be judged again")
    against: DimensionLabel


class Verdict(Record):
    """The judge's grade of one text (section 7)."""

    grade: Grade
    decisive: str | None = Field(description="the dimension that decided; None of the one-shot judge, which names none")
    rationale: str
    labels: list[DimensionLabel]
    sent_back: str | None = Field(None, description="the dimension that the reviewer had judged again")


class RecommendedItem(Record):
    """An item of the answer."""

    item_id: str
    title: str
    category: list[str]
    price: float | None
    tag: str | None = Field(description="the tag that found it; None for the other channels")
    persona: str | None
    channel: Channel
    score: float = Field(
        description="chance of its leaf to be bought next, by the ranker; of the baseline the cosine of tag and title; "
        "0 where nothing was ranked"
    )
    evidence: list[str] = Field(description="ids of the history lines that it rests on")
    style: StyleGuideline | None = None
    explanation: str | None = None
    explanation_source: Literal["model", "plain"] | None = Field(
        None, description="plain: no text of the model held, and a true sentence made of the facts stands in"
    )
    claims: list[Claim] | None = Field(
        None, description="what the explanation says, each with the fact that it rests on; None: no code read it"
    )
    verdict: Verdict | None = None


class ExpertTask(Record):
    """What one expert gets: a persona with the evidence that the planner picked, signals and shelf; no history."""

    user_id: str
    as_of: NaiveDatetime
    profile: str | None
    persona: Persona
    signals: list[Signal]
    shelf: list[ShelfLine] = Field(default=[], description="leaf categories that tools propose; empty where it is off")


class RouteTask(Record):
    """What one route of the baseline gets: what it looks for as a persona, and the history as plain events."""

    user_id: str
    as_of: NaiveDatetime
    profile: str | None
    persona: Persona
    events: list[EventLine]


class ExplanationTask(Record):
    """What the stylist and the explainer get for one item: the input of the graph `explanation`."""

    user_id: str
    as_of: NaiveDatetime
    profile: str | None
    persona: Persona | None
    evidence: list[HistoryLine]
    item: RecommendedItem
    own: list[HistoryLine] = Field(description="lines of the history about the item's own leaf; empty: it is new")
    signals: list[Signal]


class StyledTask(ExplanationTask):
    """The explainer's input: the task and the style guideline."""

    style: StyleGuideline


class Fact(Record):
    """Something that the judge may check a text against."""

    name: Literal["moment", "profile", "persona", "history", "signals", "item", "shelf"]
    text: str


class JudgeTask(Record):
    """A text to judge and the facts behind it: the input of the graph `judge`."""

    user_id: str
    kind: Subject
    subject_id: str = Field(description="the item id or tag that the verdict is about")
    subject: str = Field(description="the text to judge; an empty one is a fault and no error")
    facts: list[Fact]
    claims: list[Claim] | None = Field(
        None, description="of an explanation what code read in it, see `agents.claims`; None where code read nothing"
    )


class ReviewTask(JudgeTask):
    """What the reviewer gets: the task, the evaluators' labels, and which of them failed."""

    rubrics: list[Rubric]
    labels: list[DimensionLabel] = Field([], description="where a dimension was judged twice, the last one counts")
    failures: list[Failure] = []
    doubt: Doubt | None = None


class EvaluationTask(JudgeTask):
    """What one evaluator gets: one dimension, and what its rubric lets it see."""

    rubric: Rubric
    doubt: Doubt | None = None


# ---- what a run leaves behind ---------------------------------------------------------------------------------


class CallRecord(Record):
    """One model call."""

    agent: str
    subject: str
    prompt: str = Field(description="name and version of the prompt file")
    model: str
    attempt: int
    valid: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Rejection(Record):
    """An answer that did not hold; it was asked for again, or its agent failed."""

    agent: str
    subject: str
    attempt: int
    reason: str
    answer: str = Field(description="its first 300 characters")


class Failure(Record):
    """A part of the request that gave nothing, after all attempts."""

    agent: str
    subject: str = Field(description="persona, item or dimension")
    kind: Literal["invalid_answer", "server_unreachable", "server_refused"]
    reason: str


class AgentUsage(Record):
    """Cost of one agent in one request."""

    llm_calls: int
    valid_at_first_try: int = Field(description="calls of attempt 1 whose answer held")
    first_tries: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float = Field(description="summed over its calls, which run beside each other")
    prompts: list[str]
    models: list[str]


class Usage(Record):
    """Cost of one request."""

    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float = Field(description="from the request to the answer")
    by_agent: dict[str, AgentUsage]
    history_lines: int = Field(description="lines of the history that the planner read, or events that the routes read")
    history_lines_cut: int = Field(description="lines, or events, that did not fit the budget")


class Household(Record):
    """The context C of the request as the agents saw it: what evidence and signals refer to."""

    profile: str | None
    history: list[HistoryLine]
    days: list[DayLine] = Field(
        default_factory=list, description="what was done day by day, where the history has more than its lines show"
    )
    signals: list[Signal]


class Recommendation(Record):
    """One line of the output."""

    user_id: str
    as_of: NaiveDatetime
    settings: dict[str, JsonValue] = Field(description="of the request, where they are not the defaults")
    household: Household
    personas: list[Persona]
    tags: list[Tag]
    items: list[RecommendedItem]
    failures: list[Failure]
    rejected: list[Rejection]
    degraded: list[str] = Field(description="what is less than asked for, in words")
    usage: Usage


# ---- answers of the model -------------------------------------------------------------------------------------


UNTOLD = WithJsonSchema({"type": "string"})
"""Of a text whose bounds the server is not told, in schemas that differ from request to request.

Its grammar has a state for each character that it counts: those of a plan take it seconds to compile, without them
hundredths. An answer that breaks the bounds is asked again.
"""


class PlannedPersona(Answer):
    """One persona as the planner writes it: what supports it (`citation` of lines, ids of signals), then what it is."""

    evidence: list[str]
    signals: list[str]
    name: Annotated[str, StringConstraints(min_length=3, max_length=40), UNTOLD]
    intent: Annotated[str, StringConstraints(min_length=10, max_length=160), UNTOLD]


class Plan(Answer):
    """The planner's answer. Personas of one name are one need told twice; no JSON schema can rule that out."""

    personas: list[PlannedPersona]

    @field_validator("personas")
    @classmethod
    def _two_names_at_least(cls, personas: list[PlannedPersona]) -> list[PlannedPersona]:
        if len({persona.name.casefold() for persona in personas}) < 2:
            raise ValueError(f"every persona has the name {personas[0].name!r}; write at least two different ones")
        return personas


TagText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=48)]


class TagList(Answer):
    """An expert's answer."""

    tags: list[TagText]


class PickedTag(Answer):
    """One pick of the arbiter."""

    tag: str
    reason: Annotated[str, StringConstraints(min_length=3, max_length=60), UNTOLD]


class Selection(Answer):
    """The arbiter's answer, best first. A tag that it names again counts once; no JSON schema can rule that out."""

    picks: list[PickedTag]

    @field_validator("picks")
    @classmethod
    def _mostly_picked_once(cls, picks: list[PickedTag]) -> list[PickedTag]:
        tags = [pick.tag for pick in picks]
        if 2 * len(set(tags)) < len(tags):
            twice = sorted({tag for tag in tags if tags.count(tag) > 1})
            raise ValueError(f"picked more than once: {', '.join(twice[:3])}")
        return picks


class ExplanationText(Answer):
    """The explainer's answer."""

    text: str = Field(min_length=20, max_length=280)


class EvaluatorAnswer(Answer):
    """One evaluator's answer: the label, then the id of the line that decides.

    In this order the label's probability is its own, and not that of a label for a line that was already named.
    """

    label: Label
    evidence: str


class OneShotGrade(Answer):
    """What the one-shot judge answers."""

    grade: Grade
    rationale: str = Field(min_length=3, max_length=300)


class Question(Answer):
    """The reviewer's answer where labels exclude each other."""

    send_back: str


class Review(Answer):
    """The reviewer's answer; the grade is not its business but the rule's."""

    decisive: str
    rationale: str = Field(min_length=10, max_length=240)


def one_of(values: list[str]) -> Any:  # noqa: ANN401 (a type made at run time)
    """`Literal` of the values."""
    return Literal[tuple(values)]


def list_of(entry: Any, least: int, most: int) -> Any:  # noqa: ANN401 (a type made at run time)
    """A field: a list of `least` to `most` entries."""
    return (list[entry], Field(min_length=least, max_length=most))


def plan_schema(citations: list[str], signal_ids: list[str], personas: int) -> type[Plan]:
    """A plan whose evidence and signals exist in the prompt, of two to `personas` personas."""
    persona = create_model(
        "Persona",
        __base__=PlannedPersona,
        evidence=list_of(one_of(citations), 1, 5),
        signals=list_of(one_of(signal_ids), 0, 3) if signal_ids else list_of(str, 0, 0),
    )
    return create_model("Plan", __base__=Plan, personas=list_of(persona, 2, personas))


def tags_schema(count: int, vocabulary: Sequence[str] = ()) -> type[TagList]:
    """A list of `count` tags: any, or where there is a vocabulary, only its words."""
    tag = one_of(list(vocabulary)) if vocabulary else TagText
    return create_model("Tags", __base__=TagList, tags=list_of(tag, count, count))


def selection_schema(pool: list[str], count: int) -> type[Selection]:
    """`count` picks from the pool."""
    pick = create_model("Pick", __base__=PickedTag, tag=(one_of(pool), ...))
    return create_model("Selection", __base__=Selection, picks=list_of(pick, count, count))


def checked_text(check: Callable[[str], None]) -> type[ExplanationText]:
    """An explanation whose text passes a check, which raises a ValueError; the JSON schema is that of any text."""

    def passes(text: str) -> str:
        check(text)
        return text

    validators: dict[str, Any] = {"check": field_validator("text")(passes)}
    return create_model("ExplanationText", __base__=ExplanationText, __validators__=validators)


def style_schema(occasions: list[str]) -> type[StyleGuideline]:
    """A guideline that alludes to one of the occasions, or to none: a season that a model makes up is in no signal."""
    return create_model("Style", __base__=StyleGuideline, season=(one_of([*occasions, "none"]), ...))


def evaluation_schema(ids: list[str]) -> type[EvaluatorAnswer]:
    """A label whose evidence is one of the lines."""
    return create_model("Evaluation", __base__=EvaluatorAnswer, evidence=(one_of(ids), ...))


def question_schema(dimensions: list[str]) -> type[Question]:
    """A question about one of the dimensions, or about none."""
    return create_model("Question", __base__=Question, send_back=(one_of([*dimensions, "none"]), ...))


def review_schema(dimensions: list[str]) -> type[Review]:
    """A review that names one of the dimensions as decisive."""
    return create_model("Review", __base__=Review, decisive=(one_of(dimensions), ...))
