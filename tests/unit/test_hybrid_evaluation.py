"""Figures of `recgpt eval hybrid`: what is compared with what, and what a page shows of it."""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage, SystemMessage
from typer.testing import CliRunner

from agents.schemas import CallRecord, ProposedTag
from eval.hybrid import (
    Answer,
    PromptSizes,
    Question,
    hit_figures,
    hybrid_budgets,
    is_right,
    perceive,
    perception_figures,
    read_answers,
    size_figures,
    whole_figures,
    write_hybrid_page,
)
from eval.metrics import relative
from eval.prefill import prefill_figures
from eval.splits import Case
from prompts.template import Prompt
from recgpt.cli import app
from tests.conftest import AS_OF, tag_run, write_small_dataset
from tests.scripted_server import MODEL, Reply, ScriptedServer, good_answer
from tools.adaptor import Adaptor, AdaptorShape, load_adaptor, save_adaptor
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import ServerError
from tools.hybrid import Reading
from tools.llm import Endpoint
from tools.models import weights_name


def call(tokens: int, attempt: int = 1) -> CallRecord:
    return CallRecord(
        agent="planner",
        subject="household",
        prompt="planner/v1",
        model="m",
        attempt=attempt,
        valid=True,
        prompt_tokens=tokens,
        completion_tokens=10,
        seconds=0.5,
    )


def asked(task: str, entity: str, answer: str) -> Question:
    prompt = Prompt.model_validate(
        {
            "agent": "perception",
            "version": task,
            "description": "a question of the tests",
            "fields": ["item"],
            "system": "Answer.",
            "user": "What is {{entity item}}?",
        }
    )
    values = {"item": entity}
    return Question(task, entity, prompt.render(values), prompt.render(values, hybrid=True), answer, ())


def test_a_ratio_is_of_pairs() -> None:
    found = relative([0.2, 0.4, 0.6], [0.1, 0.2, 0.3])
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert relative([0.1, 0.2], [0.0, 0.0]).n == 0
    assert relative([0.1, 0.2], [0.0, 0.1]).n == 0  # some draws have nothing to divide by


def test_sizes_are_summed_up_by_household() -> None:
    sizes = [PromptSizes(1000 * n, 1000 * n - 10 * n * n, 10, 100) for n in range(1, 25)] + [PromptSizes(100, 90, 0, 0)]
    figures = size_figures(sizes, 2)
    assert figures["entity_compression"].mean == pytest.approx(5) and figures["entity_compression"].n == 24
    assert figures["prompt_reduction.median"].mean == pytest.approx(0.12)  # of 11,000, 12,000 and 13,000 tokens
    assert figures["prompt_reduction.long"].mean == pytest.approx(0.22) and figures["prompt_reduction.long"].n == 5
    assert "prompt_reduction.long" not in size_figures(sizes[:3], 2)


def test_text_is_cut_to_each_household_own_hybrid_prompt() -> None:
    cases = [Case(user, AS_OF, frozenset(), frozenset()) for user in "abc"]
    calls = [[call(900), call(1020, attempt=2)], [call(300)], []]
    runs = [tag_run(case, calls=own) for case, own in zip(cases, calls, strict=True)]
    assert hybrid_budgets(runs) == {"a": 900, "b": 300}


def test_arms_are_compared_on_the_households_that_both_have(journey: Dataset) -> None:
    leaves = ["White Milk", "Shredded Cheese"]
    cases = [Case(user, AS_OF, frozenset(leaves), frozenset(["White Milk"])) for user in "abc"]

    def runs(tags: dict[str, list[str]]) -> list[object]:
        pools = {user: [ProposedTag(tag=tag, persona="p") for tag in own] for user, own in tags.items()}
        return [tag_run(case, pool=pools[case.user_id]) for case in cases if case.user_id in pools]

    found = {"white milk", "shredded cheese"}
    arms = {
        "hybrid": runs({"a": sorted(found), "b": ["white milk"], "c": ["white milk"]}),
        "text": runs({"a": ["white milk"], "b": ["white milk"]}),
    }
    figures = hit_figures(arms, journey, open_embedder(PACKAGED_MODEL))  # type: ignore[arg-type]
    assert figures["hr@30.all.hybrid"].mean == pytest.approx(2 / 3)
    assert figures["hr@30.all.hybrid-text"].mean == pytest.approx(0.25) and figures["hr@30.all.hybrid-text"].n == 2
    assert figures["hr@30.all.hybrid/text"].mean == pytest.approx(0.5)
    assert figures["hr@30.new.hybrid"].mean == pytest.approx(1 / 3)
    alone = hit_figures({"text": arms["text"]}, journey, open_embedder(PACKAGED_MODEL))  # type: ignore[arg-type]
    assert set(alone) == {"hr@30.all.text", "hr@30.new.text"}


def test_long_histories_are_told_apart() -> None:
    case = Case("a", AS_OF, frozenset(), frozenset())
    whole, cut = tag_run(case, calls=[call(5000)]), tag_run(case, calls=[call(7000)])
    sizes = {"a": PromptSizes(21_000, 5000, 9, 90)}
    figures = whole_figures({"hybrid": [whole], "text": [cut]}, sizes)
    assert figures["long_whole.hybrid"].mean == 1 and figures["long_whole.text"].mean == 0
    assert figures["long_answered.hybrid"].mean == 0  # it has no tags
    assert whole_figures({"hybrid": [whole]}, {"a": PromptSizes(19_000, 5000, 9, 90)}) == {}


async def test_questions_are_asked_once_and_answers_kept(server: ScriptedServer, tmp_path: Path) -> None:
    from pydantic import SecretStr

    server.answer = lambda agent, body: Reply('"Grocery"')
    endpoint = Endpoint(server.base_url, MODEL, SecretStr("EMPTY"), 10)
    questions = [asked("department", "tea", "Grocery"), asked("department", "soap", "Household")]
    path = tmp_path / "answers.jsonl"

    def write(answer: Answer) -> None:
        with path.open("a") as file:
            file.write(answer.model_dump_json() + "\n")

    await perceive({"text": endpoint}, questions, {(0, "text")}, 2, write)
    assert read_answers(path) == {(1, "text"): '"Grocery"'}
    server.answer = lambda agent, body: Reply("no", status=400)
    with pytest.raises(ServerError, match="refused"):
        await perceive({"text": endpoint}, questions, set(), 2, write)


async def test_prefill_is_timed_on_prompts_that_no_cache_knows(server: ScriptedServer) -> None:
    from pydantic import SecretStr

    server.answer = lambda agent, body: Reply('"a')
    endpoint = Endpoint(server.base_url, MODEL, SecretStr("EMPTY"), 10)
    prompts = [[SystemMessage("Plan."), HumanMessage(text)] for text in ("tea", "soap")]
    asking, sent = {"text": endpoint, "hybrid": endpoint}, {"text": prompts, "hybrid": prompts}
    figures = await prefill_figures(asking, sent, lambda message: None)
    expected = {f"prefill_{what}.{way}.{users}" for what in ("seconds", "rps") for way in sent for users in (1, 8, 32)}
    assert expected | {f"prefill_speedup.{users}" for users in (1, 8, 32)} < set(figures)
    assert figures["prefill_rps.text"] == figures["prefill_rps.text.32"]
    assert figures["prefix_hits.hybrid.8"].mean == pytest.approx(0.8)
    asked_for = Counter(server.prompts("prefill"))
    assert sorted(asked_for.values()) == [1, 1] + [2] * 2 * (2 + 8 + 32)  # one each to warm up, then twice the same
    assert figures["prefill_seconds.text.32"].n == 32
    server.counts = False
    untold = await prefill_figures(asking, sent, lambda message: None)
    assert set(figures) - set(untold) == {f"prefix_hits.{way}.{users}" for way in sent for users in (1, 8, 32)}


def test_accuracy_is_told_by_task_length_and_width(tiny_model: str) -> None:
    questions = [asked("department", "tea", "Grocery"), asked("size", "dish soap of a long name, 24 oz", "24 oz")]
    answers = {
        (0, "text"): '"grocery "', (1, "text"): '"24"', (0, "1_tokens"): '"Grocery"', (0, "4_tokens"): '"Grocery"',
        (1, "1_tokens"): "24 oz", (1, "4_tokens"): '"24 oz"',
    }  # fmt: skip
    figures = perception_figures(questions, answers, Reading(tiny_model, 1))
    assert figures["self_perception.department.text"].mean == 1
    assert figures["self_perception.size.text"].mean == 0
    assert figures["self_perception.tokens_1-6.text"].n == 1
    assert not any("tokens_7" in key for key in figures)  # not every item has a size
    assert (figures["lost.department"].mean, figures["lost.size"].mean) == (0, 1)  # 24 oz alone is no JSON string
    assert not is_right(questions[0], "3")


def test_the_command_measures_all_ways_and_asks_nothing_twice(
    server: ScriptedServer, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    later = [(user, datetime(2017, 11, 18 + day, 12), "turkey") for user in ("h1", "h2") for day in range(3)]
    write_small_dataset(tmp_path / "shop", later)
    embedder = open_embedder(PACKAGED_MODEL).name
    for name, tokens in (("one", 1), ("two", 2), ("other", 1)):
        shape = AdaptorShape(384, len(name), 32, tokens)
        save_adaptor(Adaptor(shape), tmp_path / name, {"model": weights_name(tiny_model), "embedder": embedder})
    server.model = tiny_model

    def answer(agent: str, body: dict[str, object]) -> Reply:
        return Reply('"Grocery"' if agent == "perception" else good_answer(agent, body))

    server.answer = answer
    common = [
        "eval",
        "hybrid",
        "--dataset",
        str(tmp_path / "shop"),
        "--model",
        tiny_model,
        "--base-url",
        server.base_url,
    ]
    common += ["--users", "2", "--questions", "2", "--agreements", "1", "--set", "vocabulary=any"]

    def run(*more: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*common, *more])
        assert result.exit_code == code, result.output
        return result.output

    assert "ask for --arm hybrid too" in run("--set", "adaptor=one", "--arm", "cut", code=1)
    assert "there is no arm half" in run("--set", "adaptor=one", "--arm", "half", code=1)
    run("--set", "adaptor=one", "--also", "two", "--arm", "hybrid", "--arm", "cut")
    out = tmp_path / "runs" / "eval" / "hybrid"
    values = json.loads((out / "metrics.json").read_text())
    assert {f"hybrid.hr@30.all.{arm}" for arm in ("hybrid", "cut", "hybrid-cut")} < set(values)
    assert "hybrid.hr@30.all.text" not in values
    ways = ("text", "hybrid", "1_tokens", "2_tokens")  # what is measured is itself a point of the curve
    assert {f"hybrid.self_perception.title.{way}" for way in ways} | {"hybrid.lost.title"} < set(values)
    assert values["hybrid.hr@30.all.hybrid"]["n"] == 2 and values["hybrid.agreement.planner"]["n"] == 1
    assert values["hybrid.entity_compression"]["mean"] > 1
    assert "Hybrid prompts" in (out / "report.html").read_text(encoding="utf-8")
    before = len(server.requests)
    run("--set", "adaptor=one", "--also", "two", "--arm", "hybrid", "--arm", "cut")
    assert len(server.requests) == before and json.loads((out / "metrics.json").read_text()) == values
    run("--set", "adaptor=one", "--also", "two", "--arm", "hybrid", "--users", "1")
    assert json.loads((out / "metrics.json").read_text()) == values  # a small run takes no household away
    run("--set", "adaptor=one")
    values = json.loads((out / "metrics.json").read_text())
    assert {f"hybrid.hr@30.all.hybrid-{arm}" for arm in ("text", "cut", "leaf", "blank")} < set(values)
    assert "hybrid.self_perception.title.2_tokens" not in values  # no curve was asked for
    embedded = [str(body["messages"]) for body in server.requests[before:] if "prompt_embeds" in str(body["messages"])]
    blank = load_adaptor(out / "blank", weights_name(tiny_model), embedder).adaptor
    vectors = blank(torch.from_numpy(open_embedder(PACKAGED_MODEL).embed(["tea", "white milk"])))
    assert torch.equal(vectors[0], vectors[1])
    assert 0 < len(embedded) < len(server.requests) - before  # those of the blank arm alone
    assert "holds another run (adaptor, settings differ)" in run("--set", "adaptor=other", code=1)


def test_the_page_shows_whatever_there_is(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_hybrid_page(path, {})
    assert "Hybrid prompts" in path.read_text(encoding="utf-8")
    keys = [
        f"hybrid.self_perception.{task}.{way}"
        for task in ("size", "size_of_query")
        for way in ("text", "1_tokens", "4_tokens")
    ]
    keys += ["hybrid.self_perception.tokens_1-6.hybrid", "hybrid.lost.size", "hybrid.hr@30.all.hybrid"]
    keys += ["hybrid.prefill_rps.text.8", "hybrid.prefill_rps.hybrid", "hybrid.entity_compression"]
    write_hybrid_page(path, dict.fromkeys(keys, relative([1.0, 2.0], [2.0, 2.0])))
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg") == 6 and "What is lost first" in page
