"""The baseline with a scripted model: what each route is asked, what becomes of its tags, what a failure costs."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from agents.context import Context
from agents.route import ROUTES, route_personas
from agents.schemas import Recommendation, Request
from graphs.recgpt_v1 import build_recgpt_v1_graph, graph
from graphs.recommend import graph as recommend_graph
from recgpt.report import write_report
from tests.conftest import AS_OF, write_small_dataset
from tests.scripted_server import Reply, ScriptedServer, good_answer
from tools.dataset import SIGNAL_KINDS
from tools.errors import ServerUnreachableError
from tools.signals import Signal

REQUEST = Request(user_id="h1", as_of=AS_OF)
EVENTS = 13
"""Of household h1 in the small data set."""


async def run_v1(context: Context, user_id: str = "h1", **settings: object) -> Recommendation:
    request = Request(user_id=user_id, as_of=AS_OF)
    return Recommendation.model_validate(await graph.ainvoke(request, context=context.model_copy(update=settings)))


def route_of(body: dict[str, Any]) -> str:
    return re.search(r"^Persona: (.+)$", body["messages"][-1]["content"], re.M)[1]  # type: ignore[index]


def script_routes(server: ScriptedServer, answer_of: Callable[[str], Reply | None]) -> None:
    """Answer the routes by their names, and well where there is no answer."""

    def answer(agent: str, body: dict[str, Any]) -> Reply:
        reply = answer_of(route_of(body)) if agent == "route" else None
        return reply or Reply(good_answer(agent, body))

    server.answer = answer


def questions(server: ScriptedServer) -> dict[str, str]:
    """What each route was asked, by its name."""
    bodies = [body for body in server.requests if body["response_format"]["json_schema"]["name"] == "route"]
    return {route_of(body): body["messages"][-1]["content"] for body in bodies}


def history_of(question: str) -> list[str]:
    return re.findall(r"^- (.+ \(bought .+\))$", question, re.M)


async def test_a_whole_request(context: Context, server: ScriptedServer, tmp_path: Path) -> None:
    result = await run_v1(context)
    names = [route.name for route in ROUTES]
    assert [persona.name for persona in result.personas] == names
    assert all(tag.persona in names and tag.category and tag.score for tag in result.tags)
    assert len(result.items) == 4
    for item in result.items:
        assert item.tag in {tag.tag for tag in result.tags}
        assert item.explanation and item.style is None and item.verdict is None
    assert result.failures == result.rejected == []
    assert result.usage.by_agent.keys() == {"route", "explainer"}  # no planner, no arbiter, no style
    assert result.usage.llm_calls == len(server.requests) == 4 + 4
    assert result.usage.by_agent["route"].prompts == ["route/v1"]
    assert result.usage.by_agent["explainer"].prompts == ["explainer/fixed"]
    assert (result.usage.history_lines, result.usage.history_lines_cut) == (EVENTS, 0)
    write_report(tmp_path / "r.html", [result])
    assert f"{EVENTS} lines of history were read" in (tmp_path / "r.html").read_text()


async def test_each_route_reads_the_full_history_and_its_own_signals_only(
    context: Context, server: ScriptedServer
) -> None:
    await run_v1(context)
    asked = questions(server)
    assert asked.keys() == {route.name for route in ROUTES}
    for question in asked.values():
        lines = history_of(question)
        assert len(lines) == EVENTS
        assert lines[0] == "Store Brand White Milk, 1 gal (bought 1 October 2017)"  # oldest first, each on its own
        assert lines[-1] == "Infant Formula, 13 oz (bought 14 November 2017)"
        assert lines.count("White Bread, 20 oz (bought 8 October 2017)") == 1
        assert "Age 25 to 34" in question and "Friday, 17 November 2017" in question
    assert "Signals:\n- Season: late autumn, November\n- Thanksgiving" in asked["Season and holidays"]
    assert "Signals:\n- Mailer: turkeys\n- Local fair\n\n" in asked["Promotions"]
    assert "Signals:\n(none)\n" in asked["Shopping habits"]
    assert [name for name, question in asked.items() if "Thanksgiving" in question] == ["Season and holidays"]
    assert [name for name, question in asked.items() if "Mailer" in question] == ["Promotions"]


def test_each_kind_of_signal_is_for_one_route() -> None:
    kinds = ["season", *SIGNAL_KINDS]
    signals = [Signal(id=f"s{n}", kind=kind, text=kind, categories=[]) for n, kind in enumerate(kinds)]
    seen = [signal.kind for persona in route_personas(signals) for signal in persona.signals]
    assert sorted(seen) == sorted(kinds)


async def test_the_routes_prompts_are_alike_up_to_the_routes_own_part(context: Context, server: ScriptedServer) -> None:
    await run_v1(context)
    assert len({body["messages"][0]["content"] for body in server.requests[:4]}) == 1
    parts = [question.partition("\n\nSignals:\n") for question in questions(server).values()]
    (shared,) = {before for before, _, _ in parts}
    assert len(history_of(shared)) == EVENTS
    for _, _, own in parts:
        assert re.match(r"(\(none\)|- .+)(\n- .+)*\n\nPersona: .+\nIntent: .+\n\nWrite 15 tags as JSON.$", own)


async def test_the_union_takes_the_routes_in_turn_and_no_tag_twice(context: Context, server: ScriptedServer) -> None:
    first = ["white milk", "white bread", "infant formula", *(f"frozen pizza {n}" for n in range(12))]
    other = ["White Milk", "dish soap", "canned pumpkin", *(f"Frozen Pizza {n}" for n in range(12))]
    answers = {ROUTES[0].name: first, ROUTES[1].name: other}
    script_routes(server, lambda name: Reply(json.dumps({"tags": answers.get(name, other)})))
    result = await run_v1(context, final_tags=5)
    proposed = [(tag.proposed, tag.persona) for tag in result.tags]
    assert proposed == [
        ("white milk", ROUTES[0].name),  # where it was first said, although all say it
        ("white bread", ROUTES[0].name),
        ("dish soap", ROUTES[1].name),
        ("infant formula", ROUTES[0].name),
        ("canned pumpkin", ROUTES[1].name),
    ]
    assert all(tag.reason == "" for tag in result.tags)


async def test_a_route_that_fails_is_a_failure_and_the_others_go_on(context: Context, server: ScriptedServer) -> None:
    script_routes(server, lambda name: Reply("nonsense") if name == "Promotions" else None)
    result = await run_v1(context)
    assert [(f.agent, f.subject, f.kind) for f in result.failures] == [("route", "Promotions", "invalid_answer")]
    assert {tag.persona for tag in result.tags} == {route.name for route in ROUTES} - {"Promotions"}
    assert "no tags of the route 'Promotions': it gave no valid answer" in result.degraded
    assert len(result.rejected) == 2 and all(item.explanation for item in result.items)


async def test_without_any_route_there_are_no_tags_but_an_answer(context: Context, server: ScriptedServer) -> None:
    script_routes(server, lambda name: Reply("nonsense"))
    result = await run_v1(context)
    assert len(result.failures) == 4
    assert "no tags: no route gave a valid answer" in result.degraded
    assert result.tags == [] and result.items[0].channel == "habit"
    assert all(item.explanation and item.evidence for item in result.items)


@pytest.mark.parametrize("failing", ["all", "milk"])
async def test_an_item_without_a_text_goes_on(context: Context, server: ScriptedServer, failing: str) -> None:
    def answer(agent: str, body: dict[str, Any]) -> Reply:
        bad = agent == "explainer" and (failing == "all" or "Item: Store Brand White Milk" in str(body["messages"]))
        return Reply("nonsense") if bad else Reply(good_answer(agent, body))

    server.answer = answer
    result = await run_v1(context, items=8)
    failed = [item.item_id for item in result.items if item.explanation is None]
    assert sorted(failed) == sorted(item.item_id for item in result.items if failing in ("all", item.item_id)) != []
    assert sorted(f.subject for f in result.failures if f.agent == "explainer") == sorted(failed)
    assert f"no explanation for item {failed[0]}: no valid text" in result.degraded


async def test_the_fixed_prompt_tells_the_facts_that_the_explainer_is_told(
    context: Context, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object) -> None:
        raise ServerUnreachableError("embedding endpoint is gone")

    monkeypatch.setattr("tools.embedding.LocalEmbedder.embed", gone)  # both show what is bought anyway
    script_routes(server, lambda name: Reply("nonsense"))
    server_facts = re.compile(r"^(?:Now|Persona|Item|Shelf|The item so far|- ).*$", re.M)
    await run_v1(context)
    fixed = [server_facts.findall(text) for text in server.prompts("explainer")]
    assert not any("Style:" in text for text in server.prompts("explainer"))
    server.requests.clear()
    server.answer = lambda agent, body: Reply("nonsense" if agent == "planner" else good_answer(agent, body))
    await recommend_graph.ainvoke(REQUEST, context=context)
    assert sorted(fixed) == sorted(server_facts.findall(text) for text in server.prompts("explainer"))
    assert any("The item so far: bought 4x, every 7 days" in line for lines in fixed for line in lines)


@pytest.mark.parametrize(
    ("window", "route_tokens", "budget"), [(2400, 3000, 2400 - (15 * 20 + 20) - 120), (8192, 1200, 1200)]
)
async def test_a_history_beyond_window_or_bound_loses_its_oldest_events(
    tmp_path: Path, context: Context, server: ScriptedServer, window: int, route_tokens: int, budget: int
) -> None:
    older = [("h1", datetime(2017, 1, 1) + timedelta(days=n // 2), "pizza") for n in range(400)]
    directory = write_small_dataset(tmp_path / "long", older)
    server.window = window
    result = await run_v1(context, dataset=directory, route_tokens=route_tokens)
    usage = result.usage
    assert usage.history_lines + usage.history_lines_cut == 400 + EVENTS
    note = f"history: the {usage.history_lines_cut} oldest of 413 events did not fit into {budget} tokens"
    assert note in result.degraded
    asked = questions(server)
    read = {tuple(history_of(question)) for question in asked.values()}
    assert len(read) == 1  # the cut is the same for all: what they share stays shared
    (lines,) = read
    assert len(lines) == usage.history_lines
    assert lines[-1].startswith("Infant Formula") and lines[0] != "Frozen Pizza, 10 oz (bought 1 January 2017)"
    sizes = [len(text) // 4 for text in server.prompts("route")]
    assert budget - 50 < max(sizes) <= budget
    assert len(result.household.history) == 5  # the lines that explanations refer to are not cut


async def test_no_route_sees_an_event_at_or_after_the_moment(
    tmp_path: Path, context: Context, server: ScriptedServer
) -> None:
    planted = [("h1", AS_OF, "turkey"), ("h1", datetime(2017, 12, 1), "pumpkin")]
    await run_v1(context, dataset=write_small_dataset(tmp_path / "planted", planted))
    assert {len(history_of(question)) for question in questions(server).values()} == {EVENTS}


@pytest.mark.parametrize("vocabulary", ["catalogue", "shelf"])
async def test_routes_are_held_to_the_catalogue(context: Context, server: ScriptedServer, vocabulary: str) -> None:
    await run_v1(context, vocabulary=vocabulary)
    words = server.requests[0]["response_format"]["json_schema"]["schema"]["properties"]["tags"]["items"]["enum"]
    assert "white milk" in words and len(words) == 8


async def test_a_route_has_the_experts_model_and_temperature(context: Context, server: ScriptedServer) -> None:
    result = await run_v1(context, expert_model="tuned-expert", expert_temperature=0.3)
    assert {(body["model"], body["temperature"]) for body in server.requests[:4]} == {("tuned-expert", 0.3)}
    assert result.usage.by_agent["explainer"].models == [context.model]


async def test_without_embeddings_the_households_own_purchases_stand_in(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object) -> None:
        raise ServerUnreachableError("embedding endpoint is gone")

    monkeypatch.setattr("tools.embedding.LocalEmbedder.embed", gone)
    result = await run_v1(context)
    assert [f.agent for f in result.failures] == ["grounding", "retriever"]
    assert [item.channel for item in result.items] == ["habit"] * 4
    assert all(item.explanation for item in result.items)


async def test_a_server_that_is_gone_leaves_an_answer(context: Context) -> None:
    result = await run_v1(context, base_url="http://127.0.0.1:9/v1", items=1)
    assert [(f.agent, f.kind) for f in result.failures] == [
        ("route", "server_unreachable"),
        ("explainer", "server_unreachable"),
    ]
    assert "no tags: nothing told how much of the history fits" in result.degraded
    assert result.items[0].channel == "habit" and result.items[0].evidence


async def test_a_server_without_tokenizer_is_estimated(context: Context, server: ScriptedServer) -> None:
    server.tokenizer = False
    assert (await run_v1(context)).failures == []


async def test_nothing_blocks_the_event_loop(context: Context) -> None:
    await run_v1(context)  # loads models and indexes, in threads
    with blockbuster_ctx(["agents", "graphs", "tools", "prompts"]):
        await run_v1(context)


async def test_a_service_resumes_from_its_checkpoint(
    context: Context, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    config = {"configurable": {"thread_id": "1"}}
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as saver:
        compiled = build_recgpt_v1_graph().compile(checkpointer=saver)
        await compiled.ainvoke(REQUEST, config, context=context, interrupt_before=["collect_explanations"])
        asked = len(server.requests)
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as saver:
        compiled = build_recgpt_v1_graph().compile(checkpointer=saver)
        state = await compiled.ainvoke(None, config, context=context)
    assert len(server.requests) == asked  # nothing is asked twice
    assert len(Recommendation.model_validate(state).items) == 4


async def test_the_one_shot_judge_gives_one_grade_a_text(context: Context, server: ScriptedServer) -> None:
    result = await run_v1(context, judge=True)
    assert {(item.verdict.grade, item.verdict.decisive) for item in result.items if item.verdict} == {("Average", None)}
    assert result.usage.by_agent["one_shot"].llm_calls == len(result.items) == 4
    prompt = server.prompts("one_shot")[0]
    assert all(f"- {name}: " in prompt for name in ("Relevance", "Factuality", "Timeliness"))
    assert "Text to judge:\nt1: " in prompt and " item: " in prompt


async def test_a_grade_that_is_none_never_becomes_a_verdict(context: Context, server: ScriptedServer) -> None:
    server.answer = lambda agent, body: Reply(
        '{"grade": "Great", "rationale": "so good"}' if agent == "one_shot" else good_answer(agent, body)
    )
    result = await run_v1(context, judge=True, items=1)
    assert result.items[0].verdict is None
    assert [f.agent for f in result.failures] == ["one_shot"]
    assert "the judge gave no valid answer" in str(result.degraded)
