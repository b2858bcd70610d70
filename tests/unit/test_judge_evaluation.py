"""Measuring the judge: scripted judges that are right, wrong, swayed or silent."""

import json
import re
from collections.abc import Iterator
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
from recgpt.judge import reward_figures, reward_shares, rewards_by_loss
from tests.scripted_server import MODEL, Reply, ScriptedServer, good_answer
from tools.errors import DatasetError, RecGPTError, SettingError
from training.reward_model import Packed

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
    figures = grade_figures(texts(), runs, context.judge_threshold)
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
    figures = grade_figures(texts(), runs, context.judge_threshold)
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
    figures = grade_figures([good, cut], runs, context.judge_threshold)
    assert figures["explanations.agents.accuracy"].mean == 1.0
    assert figures["explanations.without_checks.accuracy"].mean == 0.5


async def test_the_model_alone_is_graded_by_the_threshold_of_its_run(context: Context, server: ScriptedServer) -> None:
    server.answer = lambda agent, body: (
        Reply(json.dumps({"evidence": "t1", "label": "positive" if "Clarity" in str(body["messages"]) else "neutral"}))
        if agent == "evaluator"
        else right(agent, body)
    )
    good = next(text for text in texts() if text.grade == "Superior")
    lenient = context.model_copy(update={"judge_threshold": 0.1})
    runs = await run(lenient, (good, "agents", False))
    assert [one.verdict.grade for one in runs if one.verdict] == ["Superior"]
    assert grade_figures([good], runs, 0.1)["explanations.without_checks.accuracy"].mean == 1.0
    assert grade_figures([good], runs, 0.6)["explanations.without_checks.accuracy"].mean == 0.0


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
    other = CliRunner().invoke(app, [*command, "--set", "evaluator_temperature=1"])
    assert "holds another run (settings differ)" in other.output
    fewer = CliRunner().invoke(app, [*command, "--injections", "1"])
    assert fewer.exit_code == 0, fewer.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["injection.tried"]["mean"] == 1.0  # the other one is of the call before
    assert "no split 'dev'" in CliRunner().invoke(app, [*command, "--split", "dev"]).output


def test_reward_models_are_compared_context_by_context() -> None:
    listwise = {"tags": {"a": 1.0, "b": 0.5}, "explanations": {"a": 1.0}}
    pointwise = {"tags": {"b": 0.5, "a": 0.5}, "explanations": {"a": 0.0}}
    figures = reward_figures({"pointwise": pointwise, "listwise": listwise})
    assert figures["reward.listwise.pair_accuracy"].mean == pytest.approx(5 / 6)
    assert figures["reward.pointwise.tags.pair_accuracy"].mean == 0.5
    assert figures["reward.listwise-pointwise.pair_accuracy"].mean == pytest.approx(0.5)
    assert "reward.listwise-pointwise.pair_accuracy" not in reward_figures({"listwise": listwise})
    shorter = {"tags": {"b": 0.0}, "explanations": {"c": 0.0}}  # no other context has a pair that fits
    figures = reward_figures({"listwise": listwise, "pointwise": shorter})["reward.listwise-pointwise.pair_accuracy"]
    assert (figures.mean, figures.n) == (0.5, 1)


def test_the_share_of_pairs_in_the_right_order_is_by_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [text.model_copy(update={"context": "elsewhere"}) for text in texts()]

    def packed(candidates: list[JudgedText], split: str, tokenizer: None, longest: int) -> tuple[list[Packed], int]:
        fitting = [one for one in candidates if one.context != "elsewhere"][:2]
        grades = [("Bad", "Average", "Superior").index(one.grade or "") for one in fitting]
        return [Packed([], 0, [], grades)] if fitting else [], len(candidates) - len(fitting)

    monkeypatch.setattr("recgpt.judge.open_reward", lambda adapter, report: (None, None))
    monkeypatch.setattr("recgpt.judge.read_contexts", packed)
    monkeypatch.setattr("recgpt.judge.score_contexts", lambda model, contexts, report: [[0.9, 0.1] for _ in contexts])
    adapter = write_reward_card(tmp_path / "one", "listwise")
    shares = reward_shares(adapter, [*elsewhere, *texts()], "test", lambda message: None)
    assert shares == {"tags": {}, "explanations": {texts()[0].context: 1.0}}


def write_reward_card(directory: Path, loss: str) -> Path:
    directory.mkdir()
    (directory / "card.json").write_text(json.dumps({"recipe": {"loss": loss, "max_length": 9}}))
    return directory


def test_two_reward_models_of_one_loss_are_refused(tmp_path: Path) -> None:
    one, same = (write_reward_card(tmp_path / name, "listwise") for name in ("one", "same"))
    other = write_reward_card(tmp_path / "other", "pointwise")
    assert rewards_by_loss([one, other]) == {"listwise": one, "pointwise": other}
    with pytest.raises(SettingError, match=r"one and --reward .*same both have the loss listwise"):
        rewards_by_loss([one, same])
    with pytest.raises(SettingError, match=r"expected the card\.json of a reward model"):
        rewards_by_loss([tmp_path])


def test_samples_are_gone_on_with_under_the_same_settings_alone(
    context: Context, server: ScriptedServer, tmp_path: Path
) -> None:
    command = [
        "judge", "sample", "--out", str(tmp_path / "samples"), "--households", "5", "--dataset", str(context.dataset),
        "--model", MODEL, "--judge", MODEL, "--base-url", context.base_url,
    ]  # fmt: skip
    first = CliRunner().invoke(app, [*command, "--set", "personas=2"])
    assert json.loads((tmp_path / "samples" / "run.json").read_text())["settings"] == ["personas=2"], first.output
    other = CliRunner().invoke(app, [*command, "--set", "personas=3"])
    assert "holds another run (settings differ)" in other.output


def test_judged_texts_that_can_not_be_made_leave_the_earlier_ones(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> Iterator[JudgedText]:
        yield texts()[0]
        raise DatasetError("there are only 3 households")

    monkeypatch.setattr("recgpt.judge.make_judged", failing)
    (tmp_path / "texts.jsonl").write_text("what took an hour\n")
    result = CliRunner().invoke(app, ["judge", "data", "--dataset", str(context.dataset), "--out", str(tmp_path)])
    assert "only 3 households" in result.output
    assert (tmp_path / "texts.jsonl").read_text() == "what took an hour\n"
