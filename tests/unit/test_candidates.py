"""Candidates of the policy: several a context, also what was rejected, and no grade without a verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

from agents.context import Context
from eval.judged import JudgedText
from tests.conftest import AS_OF
from tests.scripted_server import Reply, ScriptedServer, good_answer
from tests.unit.test_claims import task
from training.candidates import Draw, Sampled, grade_samples, sample_texts
from training.judged import context_name

TAGS = Draw(context_name("h1", AS_OF, None), "h1", AS_OF, None)
TEXTS = Draw(context_name("h1", AS_OF, "i"), "h1", AS_OF, task(item=task().item.model_copy(update={"item_id": "milk"})))


async def sample(context: Context, *draws: Draw, samples: int = 3) -> list[Sampled]:
    found: list[Sampled] = []
    await sample_texts(context, draws, samples, 7, 2, found.append)
    return found


async def test_tags_of_a_context_are_drawn_from_the_experts(context: Context) -> None:
    (found,) = await sample(context, TAGS)
    subjects = [one.subject for one in found.tasks]
    assert found.context == TAGS.context
    assert len(set(subjects)) == len(subjects) == 3
    assert {one.kind for one in found.tasks} == {"tags"}
    assert any(fact.name == "history" for fact in found.tasks[0].facts)
    assert [one.subject for one in (await sample(context, TAGS))[0].tasks] == subjects  # the seed's choice


async def test_every_sample_asks_the_model(context: Context, server: ScriptedServer, tmp_path: Path) -> None:
    told = iter(range(100))
    server.answer = lambda agent, body: Reply(
        json.dumps({"text": f"You buy white bread, and this goes with it, number {next(told)}."})
        if agent == "explainer"
        else good_answer(agent, body)
    )
    keeping = context.model_copy(update={"answers": tmp_path / "answers.sqlite"})
    (found,) = await sample(keeping, TEXTS)
    assert len(found.tasks) == 3
    assert not (tmp_path / "answers.sqlite").exists()


async def test_rejected_explanations_are_candidates_too(context: Context, server: ScriptedServer) -> None:
    wrong = "Easter is near, and you cook at home often this week."
    server.answer = lambda agent, body: Reply(
        json.dumps({"text": wrong}) if agent == "explainer" else good_answer(agent, body)
    )
    (found,) = await sample(context, TEXTS)
    assert [one.subject for one in found.tasks] == [wrong]
    assert [claim.support for claim in found.tasks[0].claims or []] == [None]


@pytest.fixture
def silent(server: ScriptedServer) -> None:
    """Evaluators without a valid answer wherever the text says `noise`."""

    def answer(agent: str, body: dict[str, Any]) -> Reply:
        noisy = agent == "evaluator" and "noise" in str(body["messages"])
        return Reply("nothing of use" if noisy else good_answer(agent, body))

    server.answer = answer


@pytest.mark.usefixtures("silent")
async def test_a_sample_without_a_verdict_is_left_out_and_a_graded_one_is_not_graded_again(context: Context) -> None:
    (found,) = await sample(context, TAGS)
    noisy = found.tasks[0].model_copy(update={"subject": "a stone of noise"})
    sampled = [found.model_copy(update={"tasks": [noisy, *found.tasks[1:]]})]
    graded: list[JudgedText] = []
    await grade_samples(context, sampled, set(), 2, graded.append)
    assert len(graded) == 2
    assert all(text.context == TAGS.context and text.grade and text.source == "policy" for text in graded)
    again: list[JudgedText] = []
    await grade_samples(context, sampled, {text.id for text in graded}, 2, again.append)
    assert again == []
