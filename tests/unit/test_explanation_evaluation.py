"""What explanations are worth, against values computed by hand; and the whole comparison with a scripted model."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import Claim, DimensionLabel, RecommendedItem, Verdict
from eval.explanations import ExplanationRun, System, distinct_n, diversity, explanation_figures, is_timely
from prompts.rubric import Label
from recgpt.cli import app
from tests.conftest import AS_OF
from tests.scripted_server import MODEL, ScriptedServer


def test_diversity_is_what_texts_do_not_share() -> None:
    assert diversity(["milk for the week", "milk for the week"]) == pytest.approx(0.0)
    assert diversity(["milk for you", "bread with butter"]) == pytest.approx(1.0)
    # Longest common subsequence "milk the week": 3 of 4 and 3 of 5 words, F = 2/3.
    assert diversity(["milk for the week", "milk all the long week"]) == pytest.approx(1 / 3)
    assert diversity(["alone"]) is None


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "A c"], 1) == pytest.approx(3 / 6)
    assert distinct_n(["a b a b", "A c"], 2) == pytest.approx(3 / 4)
    assert distinct_n(["", "a"], 2) == 0.0


def test_a_timely_text_mentions_what_holds_and_nothing_else() -> None:
    holds = Claim(text="Thanksgiving", kind="occasion", support="s2")
    wrong = Claim(text="Easter", kind="occasion", support=None)
    named = Claim(text="spring", kind="occasion", support="item")  # spring water is no season
    assert is_timely([holds]) and is_timely([holds, named])
    assert not is_timely([holds, wrong]) and not is_timely([named]) and not is_timely([])
    assert not is_timely([named.model_copy(update={"support": "shelf"})])


def run(system: System, text: str, label: Label = "positive", source: str = "model") -> ExplanationRun:
    item = RecommendedItem.model_validate(
        {
            "item_id": "i", "title": "Milk", "category": ["Milk"], "price": None, "tag": None, "persona": None,
            "channel": "cognitive", "score": 0, "evidence": [], "explanation": text, "explanation_source": source,
        }
    )  # fmt: skip
    names = ["Attractiveness", "Clarity", "Factuality", "Informativeness", "Relevance", "Safety", "Timeliness"]
    labels = [DimensionLabel(dimension=name, label="positive", evidence="e", probability=None) for name in names]
    labels[0] = labels[0].model_copy(update={"label": label})
    grade = "Bad" if label == "negative" else "Superior"
    verdict = Verdict(grade=grade, decisive="Clarity", rationale="so it is", labels=labels)
    return ExplanationRun(
        user_id=text, as_of=datetime(2017, 11, 1), system=system, item=item, verdict=verdict, calls=[], failures=[]
    )


def test_figures_of_both_systems() -> None:
    figures = explanation_figures(
        [
            run("v1", "milk for the week"),
            run("v1", "milk all the long week", "negative"),
            run("v2", "milk for you"),
            run("v2", "bread with butter", source="plain"),
        ]
    )
    assert figures["v1.diversity"].mean == pytest.approx(1 / 3)
    assert figures["v2.diversity"].mean == pytest.approx(1.0)
    assert figures["v1.pass_rate"].mean == figures["v1.pass.Attractiveness"].mean == 0.5
    assert figures["v1.pass.Clarity"].mean == figures["v2.pass_rate"].mean == 1.0
    assert figures["v2.plain"].mean == 0.5


def test_the_command_explains_judges_and_goes_on(
    context: Context, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.splits import Case

    cases = [Case(user, AS_OF, frozenset(), frozenset()) for user in ("h1", "h2")]
    monkeypatch.setattr("recgpt.explanations.evaluation_cases", lambda dataset, users: cases)
    command = [
        "eval", "explanations", "--out", str(tmp_path / "out"), "--pairs", "2", "--households", "2",
        "--dataset", str(context.dataset), "--model", MODEL, "--judge", MODEL, "--base-url", context.base_url,
        "--set", f"answers={tmp_path / 'answers.sqlite'}", "--set", "items=8",
        "--set", f"towers={context.towers}", "--set", f"ranker={context.ranker}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    asked = len(server.requests)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(server.requests) == asked
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["explanations.v1.diversity"]["n"] == found["explanations.v2.diversity"]["n"] == 1
    assert found["explanations.v2.pass_rate"]["mean"] == 1.0
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    others = CliRunner().invoke(app, [*command, "--skip", "1"])
    assert "holds another run (skipped, users differ)" in others.output
