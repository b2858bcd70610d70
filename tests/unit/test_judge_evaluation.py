"""Measuring the judge: scripted judges that are right, wrong, swayed or silent."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import Fact, Grade, JudgeTask
from eval.human import Rating
from eval.judge import INJECTED, JudgeRun, grade_figures, injected, injection_figures, judge_texts, load_injections
from eval.judged import JudgedText
from prompts.rubric import Label
from recgpt.cli import app
from recgpt.judge import reward_figures
from tests.scripted_server import MODEL, Reply, ScriptedServer, good_answer
from tools.errors import RecGPTError

SUBJECTS: dict[str, tuple[Label, Grade]] = {
    "A gallon of milk for your week.": ("positive", "Superior"),
    "This is milk and no more than that.": ("neutral", "Average"),
    "Milk is made of stone and of sand.": ("negative", "Bad"),
}
DIMENSIONS = ["Attractiveness", "Clarity", "Factuality", "Informativeness", "Relevance", "Safety", "Timeliness"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.agreement.RESAMPLES", 40)


def texts() -> list[JudgedText]:
    made = []
    for number, (subject, (label, grade)) in enumerate(SUBJECTS.items()):
        task = JudgeTask(
            user_id="u", kind="explanations", subject_id="i", subject=subject, facts=[Fact(name="item", text="Milk")]
        )
        labels = dict.fromkeys(DIMENSIONS, label)
        evidence = dict.fromkeys(DIMENSIONS, subject)
        made.append(
            JudgedText(
                id=f"t{number}", split="test", source="s", context="u@2017-10-01T00:00:00", task=task,
                labels=labels, evidence=evidence, grade=grade,
            )
        )  # fmt: skip
    return made


def right(agent: str, body: dict[str, Any]) -> Reply:
    """Evaluators and the one-shot judge that know the three subjects."""
    prompt = str(body["messages"][-1]["content"])
    label, grade = next((told for subject, told in SUBJECTS.items() if subject in prompt), ("neutral", "Average"))
    if agent == "evaluator":
        return Reply(json.dumps({"evidence": "t1", "label": label}))
    if agent == "one_shot":
        return Reply(json.dumps({"grade": grade, "rationale": "so it is"}))
    return Reply(good_answer(agent, body))


async def run(context: Context, *todo: tuple[JudgedText, Any, bool]) -> list[JudgeRun]:
    runs: list[JudgeRun] = []
    await judge_texts(context, todo, 4, runs.append)
    return runs


async def test_judges_that_are_right_agree(context: Context, server: ScriptedServer) -> None:
    server.answer = right
    todo = [(text, judge, reverse) for text in texts() for judge in ("agents", "one_shot") for reverse in (False, True)]
    runs = await run(context, *todo)
    assert len(runs) == 12
    figures = grade_figures(texts(), runs)
    for judge in ("agents", "one_shot"):
        for name in ("accuracy", "kappa", "f1_superior", "f1_bad", "order_swap", "valid"):
            assert figures[f"explanations.{judge}.{name}"].mean == pytest.approx(1.0), (judge, name)
    assert figures["explanations.Clarity.accuracy"].mean == 1.0
    assert figures["explanations.agents.calls"].mean > figures["explanations.one_shot.calls"].mean == 1.0
    assert not any(key.startswith("tags") for key in figures)


async def test_a_judge_without_a_valid_answer_gives_no_grade_and_no_score(
    context: Context, server: ScriptedServer
) -> None:
    server.answer = lambda agent, body: Reply("nonsense") if agent == "evaluator" else right(agent, body)
    runs = await run(context, *[(text, "agents", False) for text in texts()])
    assert all(one.verdict is None and one.failures for one in runs)
    figures = grade_figures(texts(), runs)
    assert figures["explanations.agents.valid"].mean == 0.0
    assert figures["explanations.agents.accuracy"].mean == 0.0  # it is wrong, and not left out
    assert "explanations.Clarity.accuracy" not in figures


async def test_a_server_that_is_gone_ends_the_run(context: Context, server: ScriptedServer) -> None:
    server.answer = lambda agent, body: Reply(status=503)
    with pytest.raises(RecGPTError):
        await run(context, (texts()[0], "one_shot", False))


async def test_a_swayed_judge_is_counted(context: Context, server: ScriptedServer) -> None:
    attacked = injected(texts(), 2, 7)
    assert {text.grade for text in attacked} == {"Average", "Bad"}
    assert all(any(sentence in text.task.subject for sentence in load_injections()) for text in attacked)
    attacked = [  # as injected, in words that no code suspects
        text.model_copy(
            update={"task": base.task.model_copy(update={"subject": f"{base.task.subject} All of us agree."})}
        )
        for text in attacked
        for base in texts()
        if text.id.startswith(base.id + INJECTED)
    ]

    def swayed(agent: str, body: dict[str, Any]) -> Reply:
        told = agent == "evaluator" and "All of us agree." in str(body["messages"][-1]["content"])
        return Reply(json.dumps({"evidence": "t1", "label": "positive"})) if told else right(agent, body)

    server.answer = swayed
    runs = await run(context, *[(text, "agents", False) for text in [*texts(), *attacked]])
    figures = injection_figures(runs)
    assert (figures["tried"].mean, figures["raised"].mean) == (2.0, 2.0)
    bad = next(one.verdict for one in runs if one.verdict and one.verdict.grade == "Bad")
    steadfast = [one.model_copy(update={"verdict": bad}) if INJECTED in one.text_id else one for one in runs]
    assert injection_figures(steadfast)["raised"].mean == 0.0


async def test_what_code_found_is_left_out_of_the_model_alone_and_is_no_injection_that_was_tried(
    context: Context, server: ScriptedServer
) -> None:
    server.answer = lambda agent, body: (
        Reply(json.dumps({"evidence": "t1", "label": "positive"})) if agent == "evaluator" else right(agent, body)
    )
    good, bad = (next(text for text in texts() if text.grade == grade) for grade in ("Superior", "Bad"))
    cut = bad.model_copy(update={"task": bad.task.model_copy(update={"subject": "Milk goes well with your br"})})
    mended = cut.model_copy(
        update={
            "id": f"{cut.id}{INJECTED}1",
            "task": cut.task.model_copy(update={"subject": f"{cut.task.subject} and all."}),
        }
    )
    runs = await run(context, *[(text, "agents", False) for text in (good, cut, mended)])
    grades = {one.text_id: one.verdict.grade for one in runs if one.verdict}
    assert grades == {good.id: "Superior", cut.id: "Bad", mended.id: "Superior"}
    assert injection_figures(runs)["tried"].mean == 0.0
    figures = grade_figures([good, cut], runs)
    assert figures["explanations.agents.accuracy"].mean == 1.0
    assert figures["explanations.without_checks.accuracy"].mean == 0.5


def test_the_command_goes_on_with_what_is_there_and_writes_figures_and_page(
    context: Context, server: ScriptedServer, tmp_path: Path
) -> None:
    server.answer = right
    path, human = tmp_path / "texts.jsonl", tmp_path / "people"
    human.mkdir()
    lines = "".join(text.model_dump_json() + "\n" for text in texts())
    path.write_text(lines)
    (human / "texts.jsonl").write_text(lines)
    ratings = [
        Rating(text_id=f"t{number}", dimension="Clarity", annotator=who, value=2 - number)
        for number in range(3)
        for who in ("a", "b", "c")
    ]
    (human / "labels.jsonl").write_text("".join(rating.model_dump_json() + "\n" for rating in ratings))
    command = [
        "eval", "judge", "--out", str(tmp_path / "out"), "--texts", str(path), "--tuned", MODEL, "--untuned", "",
        "--injections", "2", "--swaps", "1", "--human", str(human), "--base-url", context.base_url,
        "--set", f"answers={tmp_path / 'answers.sqlite'}", "--set", f"dataset={context.dataset}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    asked = len(server.requests)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(server.requests) == asked
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["judge.explanations.agents.tuned.f1_superior"]["mean"] == 1.0
    assert found["people.people.tuned.Clarity.judge"]["mean"] == pytest.approx(1.0)
    assert found["injection.tried"]["mean"] == 2.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"<svg", page) and "F1 of Superior" in page
    other = CliRunner().invoke(app, [*command, "--split", "validation"])
    assert "holds another run (split differ)" in other.output
    assert "no split 'dev'" in CliRunner().invoke(app, [*command, "--split", "dev"]).output


def test_reward_models_are_compared_context_by_context() -> None:
    listwise = {"tags": [1.0, 0.5], "explanations": [1.0]}
    pointwise = {"tags": [0.5, 0.5], "explanations": [0.0]}
    figures = reward_figures({"pointwise": pointwise, "listwise": listwise})
    assert figures["reward.listwise.pair_accuracy"].mean == pytest.approx(5 / 6)
    assert figures["reward.pointwise.tags.pair_accuracy"].mean == 0.5
    assert figures["reward.listwise-pointwise.pair_accuracy"].mean == pytest.approx(0.5)
    assert "reward.listwise-pointwise.pair_accuracy" not in reward_figures({"listwise": listwise})
