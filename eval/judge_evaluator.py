"""The judge as an evaluator of LangSmith. It asks the local model server alone, and needs no account.

    from eval.judge_evaluator import judge_evaluator
    judge_evaluator(inputs, outputs)    # or evaluators=[judge_evaluator] of langsmith's `evaluate`

Inputs of an example are the keys of a `JudgeTask` but its text: `kind`, `facts`, and `user_id`, `subject_id` and
`claims` where there are any. Outputs have the text as `text`. Settings are those of the
environment (`RECGPT_BASE_URL` ...).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agents.context import Context
from agents.schemas import JudgeTask, Verdict
from eval.agreement import GRADES
from eval.human import VALUES
from graphs.judge import judge_text
from tools.llm import close_client


def judge_evaluator(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Grade a text and label its dimensions, in the form of LangSmith's `EvaluationResults`.

    The grade counts 0 (Bad), 0.5 (Average) or 1 (Superior), a label -1, 0 or 1.

    Raises:
        NoVerdictError: a part of the judge gave no valid answer; no score stands in for it.
    """
    told = {"user_id": "", "subject_id": "text", **inputs, "subject": outputs["text"]}
    verdict = judge_now(JudgeTask.model_validate(told))
    grade = GRADES.index(verdict.grade) / (len(GRADES) - 1)
    results: list[dict[str, Any]] = [
        {"key": "grade", "score": grade, "value": verdict.grade, "comment": verdict.rationale}
    ]
    results += [
        {"key": label.dimension, "score": VALUES[label.label], "value": label.label, "comment": label.evidence}
        for label in verdict.labels
    ]
    return {"results": results}


def judge_now(task: JudgeTask) -> Verdict:
    """The verdict on one text, for callers that are not async; in a thread, for the caller may be in an event loop.

    Raises:
        NoVerdictError: a part of the judge gave no valid answer.
    """

    async def judged() -> Verdict:
        try:
            return await judge_text(task, Context())
        finally:
            await close_client()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(judged())).result()
