"""A sub-evaluator of the Agent-as-a-Judge (section 7): `s_i = E_i(y, d_i)`, one dimension."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.checks import label_by_code
from agents.context import Context, context_of
from agents.judging import fact_lines, quotes, subject_lines
from agents.schemas import DimensionLabel, EvaluationTask, JudgeTask, evaluation_schema
from agents.state import JudgeState, new_run
from prompts.rubric import Label, load_rubrics
from prompts.template import Value
from tools.llm import Token

EVALUATOR_TOKENS = 40
LABELS: tuple[Label, ...] = get_args(Label)

_LABEL_KEY = re.compile(r'"label"\s*:\s*"')


async def select_rubrics(state: JudgeTask) -> dict[str, Any]:
    """The dimensions that this kind of text is judged in: one rubric file each."""
    rubrics = await asyncio.to_thread(load_rubrics, state.kind)
    return {**new_run(JudgeState), "rubrics": rubrics, "facts": state.facts, "claims": state.claims}


async def evaluate_dimension(state: EvaluationTask, runtime: Runtime[Context]) -> JudgeState:
    """Label one dimension negative, neutral or positive, with the line that decided and the label's probability.

    No model is asked where the rubric's check decides. What neither can label has no label: the grounding of a text
    that code has not read.
    """
    context = context_of(runtime)
    if found := await label_by_code(state, context):
        return {"labels": [found]}
    if not state.rubric.asks_model:
        return {}
    prompt = await read_prompt("evaluator", context.evaluator_prompt, context.evaluator_instructions)
    lines = quotes(state.facts, state.subject)
    asked = await ask(
        runtime,
        prompt,
        evaluator_values(state, context.judge_reverse),
        evaluation_schema(list(lines)),
        user_id=state.user_id,
        subject=f"{state.subject_id}/{state.rubric.dimension}",
        temperature=context.evaluator_temperature,
        max_tokens=EVALUATOR_TOKENS,
        logprobs=True,
    )
    name, probability = certain(asked.answer.label, label_probability(asked.tokens), state.rubric.certainty)
    label = DimensionLabel(
        dimension=state.rubric.dimension,
        label=name,
        evidence=lines[asked.answer.evidence],
        probability=probability,
    )
    return {"labels": [label], "calls": asked.calls, "rejected": asked.rejected}


def certain(label: Label, probability: float | None, certainty: float) -> tuple[Label, float | None]:
    """The label that counts: a negative that is less probable than `certainty` is neutral.

    Returns:
        The label and its probability; of a negative that does not count, that it is not negative.
    """
    if label == "negative" and probability is not None and probability < certainty:
        return "neutral", 1 - probability
    return label, probability


async def record_evaluator_failure(state: EvaluationTask, error: NodeError) -> Command[Any]:
    """A dimension without a valid label never becomes a score: the reviewer gives no grade then."""
    trail = failed("evaluator", f"{state.subject_id}/{state.rubric.dimension}", error.error)
    return Command(update=dict(trail), goto="question_labels")


async def reconsider_dimension(state: EvaluationTask, runtime: Runtime[Context]) -> JudgeState:
    """Judge a dimension again that the reviewer sent back; the new label counts."""
    return await evaluate_dimension(state, runtime)


async def keep_label(state: EvaluationTask, error: NodeError) -> Command[Any]:
    """Without a second answer the first label stands."""
    note = f"{state.subject_id}: {state.rubric.dimension} was sent back, and had no valid second label"
    trail = failed("evaluator", f"{state.subject_id}/{state.rubric.dimension}", error.error)
    return Command(update={**trail, "failures": [], "degraded": [note], "doubt": None}, goto="review_verdict")


def evaluator_values(task: EvaluationTask, reverse: bool) -> dict[str, Value]:
    """The fields of the evaluator's prompt.

    Args:
        task: dimension, facts and text.
        reverse: labels and facts in the opposite order, each with the id that it has anyway.
    """
    rubric = task.rubric
    order = -1 if reverse else 1
    ids = {line: name for name, line in reversed(quotes(task.facts, task.subject).items())}
    doubts: list[Mapping[str, Any]] = []
    if task.doubt:  # the line by its id: its words may be of the text, and stand nowhere but among the data
        against = task.doubt.against
        line = ids.get(against.evidence, "a line that you do not see")
        doubts = [{"dimension": against.dimension, "label": against.label, "line": line}]
    return {
        "dimension": rubric.dimension,
        "definition": rubric.definition,
        "scale": [{"label": label, "meaning": meaning} for label, meaning in rubric.scale.model_dump().items()][
            ::order
        ],
        "examples": [example.model_dump() for example in rubric.examples],
        "facts": fact_lines(task.facts)[::order],
        "subject": subject_lines(task.subject),
        "doubts": doubts,
    }


def label_probability(tokens: Sequence[Token]) -> float | None:
    """Probability of the label in an answer, among the three labels.

    The server tells log-probabilities before its schema forbids anything: at each token of the label they are
    normalised over those that go on to some label.

    Args:
        tokens: of the answer, each with the likeliest ones in its place.

    Returns:
        None where the server told nothing.
    """
    text = "".join(token.text for token in tokens)
    key = _LABEL_KEY.search(text)
    label = next((label for label in LABELS if key and text.startswith(f'{label}"', key.end())), None)
    if not key or not label:
        return None
    possible = [f'{text[: key.end()]}{name}"' for name in LABELS]
    probability, place = 1.0, 0
    for token in tokens:
        end = place + len(token.text)
        if key.end() < end and place < key.end() + len(label):
            going_on = [
                math.exp(logprob)
                for other, logprob in {**token.top, token.text: token.logprob}.items()
                if other and any(_agree(text[:place] + other, whole) for whole in possible)
            ]
            probability *= math.exp(token.logprob) / sum(going_on)
        place = end
    return probability


def _agree(text: str, whole: str) -> bool:
    return whole.startswith(text) or text.startswith(whole)
