"""Production alignment: the first answers to full-text prompts, of one model a file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import Request
from eval.splits import TRAIN_END
from prompts.template import load_prompt
from recgpt.cli import app
from tests.conftest import AS_OF
from tests.scripted_server import MODEL, Reply, ScriptedServer, good_answer
from tools.adaptor import ADAPTOR
from tools.dataset import Dataset
from tools.models import DEFAULT_MODEL, weights_name
from training.alignment import Alignment, align, alignment_cases, read_alignments

CASE = Request(user_id="h1", as_of=AS_OF)


async def test_first_answers_stand_beside_the_fields_of_their_prompts(context: Context, server: ScriptedServer) -> None:
    found: list[Alignment] = []
    await align(context, [CASE], 1, found.extend)
    assert [(line.user_id, line.agent, line.model) for line in found] == [
        ("h1", "planner", MODEL),
        ("h1", "arbiter", MODEL),
    ]
    for line in found:
        (sent,) = server.prompts(line.agent)
        rendered = load_prompt(line.agent, line.version).render(line.values, hybrid=False)
        assert "\n".join(str(message.content) for message in rendered) == sent
        json.loads(line.answer)


async def test_an_answer_that_was_cut_off_teaches_nothing(context: Context, server: ScriptedServer) -> None:
    def answer(agent: str, body: dict[str, object]) -> Reply:
        cut = agent == "planner" and not server.prompts("expert") and len(server.prompts("planner")) == 1
        return Reply(good_answer(agent, body), finish="length" if cut else "stop")

    server.answer = answer
    found: list[Alignment] = []
    await align(context, [CASE], 1, found.extend)
    assert [line.agent for line in found] == ["arbiter"]


def test_households_are_those_of_the_training_baskets(journey: Dataset) -> None:
    cases = alignment_cases(journey, 20)
    assert cases == alignment_cases(journey, 40)[:20]
    assert len({case.user_id for case in cases}) == 20
    assert max(case.as_of for case in cases) < TRAIN_END


def test_a_file_is_gone_on_with_for_the_same_model_alone(
    small_dir: Path, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recgpt.train.alignment_cases", lambda dataset, users: [CASE])
    out = tmp_path / "alignment.jsonl"

    def run(*more: str) -> tuple[int, str]:
        settings = ["--base-url", server.base_url, "--set", f"dataset={small_dir}", "--set", "vocabulary=any"]
        settings += ["--set", "tags_per_expert=15", "--set", "final_tags=8"]
        result = CliRunner().invoke(app, ["train", "alignment", "--out", str(out), "--users", "1", *settings, *more])
        return result.exit_code, " ".join(result.output.split())

    assert run("--model", MODEL)[0] == 0
    lines, asked = out.read_text(), len(server.requests)
    assert lines.count("\n") == 2
    assert run("--model", MODEL)[0] == 0
    assert (out.read_text(), len(server.requests)) == (lines, asked)
    code, said = run("--model", "other")
    assert code == 1 and f"has answers of {MODEL}, not of other" in said
    assert out.read_text() == lines


def test_what_the_shipped_adaptor_was_aligned_on_is_shipped() -> None:
    card = json.loads((ADAPTOR / "card.json").read_text())
    assert card["model"] == weights_name(DEFAULT_MODEL)  # its agents were tuned on the vectors afterwards
    lines = read_alignments(ADAPTOR / "alignment.jsonl.xz", card["model_when_trained"])
    assert sorted({line.user_id for line in lines}) == card["aligned_households"]
    assert {line.agent for line in lines} == {"planner", "arbiter"}
