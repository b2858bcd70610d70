"""The judge for people who trace: as LangSmith's evaluator, and as the fixture that pytest finds by itself."""

import pytest
from langsmith.evaluation.evaluator import EvaluationResults
from pydantic import TypeAdapter

from agents.context import Context
from eval.judge_evaluator import judge_evaluator
from tests.scripted_server import MODEL, Reply, ScriptedServer
from tools import llm
from tools.errors import NoVerdictError

pytest_plugins = ["pytester"]
INPUTS = {"kind": "explanations", "facts": [{"name": "item", "text": "White Milk, 1 gal"}]}
OUTPUTS = {"text": "A gallon of milk for the week."}


@pytest.fixture
def environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECGPT_BASE_URL", context.base_url)
    monkeypatch.setenv("RECGPT_MODEL", MODEL)
    monkeypatch.setenv("RECGPT_DATASET", str(context.dataset))


@pytest.mark.usefixtures("environment")
def test_an_evaluation_has_grade_and_labels() -> None:
    results = judge_evaluator(INPUTS, OUTPUTS)
    TypeAdapter(EvaluationResults).validate_python(results)
    by_key = {result["key"]: result for result in results["results"]}
    assert (by_key["grade"]["score"], by_key["grade"]["value"]) == (1.0, "Superior")
    assert by_key["Clarity"]["score"] == 1.0 and by_key["Length"]["score"] == 0.0


@pytest.mark.usefixtures("environment")
async def test_it_works_inside_an_event_loop() -> None:
    assert judge_evaluator(INPUTS, OUTPUTS)["results"]


@pytest.mark.usefixtures("environment")
def test_it_leaves_no_connections_behind() -> None:
    before = len(llm._clients)
    for _ in range(3):
        judge_evaluator(INPUTS, OUTPUTS)
    assert len(llm._clients) == before


@pytest.mark.usefixtures("environment")
def test_a_malformed_verdict_raises_and_is_no_score(server: ScriptedServer) -> None:
    server.answer = lambda agent, body: Reply("nonsense")
    with pytest.raises(NoVerdictError, match="no verdict on 'text': evaluator"):
        judge_evaluator(INPUTS, OUTPUTS)


@pytest.mark.usefixtures("environment")
def test_the_fixture_is_found_by_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_a_text(judge):
            assert judge("A gallon of milk.", {"item": ["White Milk, 1 gal"]}).grade == "Superior"
        """
    )
    pytester.runpytest_inprocess("-q").assert_outcomes(passed=1)
