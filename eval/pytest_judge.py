"""The judge as a pytest fixture, for tests of texts: pytest finds it by itself where the project is installed.

    def test_the_text_is_no_fault(judge):
        assert judge("A gallon of milk.", {"item": ["White Milk, 1 gal"]}).grade != "Bad"

It asks the model server of the environment (`RECGPT_BASE_URL`, `RECGPT_MODEL` ...), which must run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:  # what pytest loads at each start must be light
    from agents.schemas import Verdict
    from prompts.rubric import Subject


class Judging(Protocol):
    """What the fixture gives."""

    def __call__(self, text: str, facts: Mapping[str, Sequence[str]], kind: Subject = "explanations") -> Verdict:
        """The verdict on a text.

        Args:
            text: what to judge.
            facts: by what they are of: item, shelf, moment, profile, persona, history, signals.
            kind: explanations or tags.

        Raises:
            NoVerdictError: a part of the judge gave no valid answer.
        """


@pytest.fixture
def judge() -> Judging:
    """Judge a text in a test, see `Judging`."""
    from agents.schemas import Fact, JudgeTask
    from eval.judge_evaluator import judge_now

    def grade(text: str, facts: Mapping[str, Sequence[str]], kind: Subject = "explanations") -> Verdict:
        told = [Fact.model_validate({"name": name, "text": line}) for name, lines in facts.items() for line in lines]
        return judge_now(JudgeTask(user_id="", kind=kind, subject_id="text", subject=text, facts=told))

    return grade
