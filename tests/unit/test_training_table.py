"""Figures of `recgpt eval training`: what arms are compared on, and that nothing is asked twice."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import CallRecord, ProposedTag, Tag
from eval.metrics import Estimate, estimate
from eval.offline import write_metrics
from eval.splits import Case
from eval.tags import TagRun
from eval.training import (
    explanation_figures,
    final_tags,
    read_scores,
    scores_key,
    shared_runs,
    tag_candidates,
    training_figures,
    write_training_page,
)
from recgpt.cli import app
from tests.conftest import AS_OF, tag_run, write_small_dataset
from tests.scripted_server import Reply, ScriptedServer, good_answer
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import OutputError
from tools.models import BASE_MODEL, DEFAULT_MODEL
from tools.retrieval import open_index


def final_tag(text: str) -> Tag:
    return Tag(tag=text, persona="p", category=["c"], score=1.0, reason="r", source="model", proposed=text)


def call(valid: bool, attempt: int = 1) -> CallRecord:
    return CallRecord(
        agent="expert",
        subject="p",
        prompt="expert/v1",
        model="m",
        attempt=attempt,
        valid=valid,
        prompt_tokens=100,
        completion_tokens=10,
        seconds=0.5,
    )


def cases(users: str = "abc") -> list[Case]:
    leaves = frozenset(["White Milk", "White Bread"])
    return [Case(user, AS_OF, leaves, frozenset(["White Milk"])) for user in users]


def run(case: Case, *tags: str, valid: bool = True) -> TagRun:
    """A run whose experts proposed what was picked."""
    pool = [ProposedTag(tag=tag, persona="p") for tag in tags]
    return tag_run(case, pool, [final_tag(tag) for tag in tags], [call(valid), call(True, attempt=2)])


def test_arms_are_compared_household_by_household(small: Dataset) -> None:
    a, b, c = cases()
    arms = {
        "v1": [run(a), run(b), run(c)],
        "base": [run(a, "white milk"), run(b, valid=False), run(c, "white milk", "white milk jug")],
        "sft": [run(a, "white milk", "white bread"), run(b, "white bread"), run(c, "white milk")],
    }
    scores = {scores_key(arms["sft"][0]): [0.2, 0.6], scores_key(arms["base"][0]): [0.1]}
    values = training_figures(arms, "sft", small, open_embedder(PACKAGED_MODEL), scores)
    assert values["training.base.leaf.all.hr@30"].mean == pytest.approx(1 / 3)
    assert values["training.sft.leaf.all.hr@30"].mean == pytest.approx(2 / 3)
    assert values["training.sft.leaf.new.hr@30"].mean == pytest.approx(2 / 3)
    assert values["training.sft-base.leaf.all.hr@30"].mean == pytest.approx(1 / 3)
    assert values["training.sft/base.leaf.all.hr@30"].n == 0  # some draws have nothing to divide by
    assert values["training.sft-v1.leaf.all.hr@30"].mean == pytest.approx(2 / 3)
    assert values["training.base.valid_calls"].mean == pytest.approx(2 / 3)  # of first tries alone
    assert values["training.base.length"].mean == pytest.approx(2.25) and values["training.base.length"].n == 2
    assert values["training.sft.tag_diversity"].n == 1 and 0 < values["training.sft.tag_diversity"].mean < 1
    assert values["training.sft.alignment"].mean == pytest.approx(0.4) and values["training.v1.alignment"].n == 0
    assert values["training.sft-base.alignment"].mean == pytest.approx(0.3)
    assert values["training.sft-base.alignment"].n == 1
    assert not any(key.startswith(("training.grpo", "training.crs")) for key in values)


def test_only_shared_households_are_compared_in_the_order_of_the_cases() -> None:
    a, b, c = cases()
    arms = shared_runs({"v1": [run(c), run(a), run(b)], "sft": [run(b), run(c)]}, [a, b, c])
    assert {name: [one.user_id for one in own] for name, own in arms.items()} == {"v1": ["b", "c"], "sft": ["b", "c"]}
    with pytest.raises(OutputError, match=r"no household is in all arms \(households: v1 1, sft 1\)"):
        shared_runs({"v1": [run(a)], "sft": [run(b)]}, [a, b, c])


def test_tags_of_a_household_are_candidates_of_one_context(small: Dataset) -> None:
    index = open_index(small, open_embedder(PACKAGED_MODEL))
    own = run(Case("h1", AS_OF, frozenset(), frozenset()), "white milk", "baby diapers", "White Milk")
    assert final_tags(own) == ["White Milk", "baby diapers"]
    milk, diapers = (str(messages[-1].content) for messages in tag_candidates(small, index, own))
    assert milk.removesuffix("White Milk") == diapers.removesuffix("baby diapers")
    assert "Shredded" not in milk.split("Candidate, tags:")[1] and "Age 25 to 34" in milk


def test_scores_are_those_of_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    assert read_scores(path, "now") == {}
    line = {"reward": "now", "user_id": "a", "as_of": AS_OF.isoformat(), "tags": ["x"], "scores": [0.5]}
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "reward": "before", "scores": [0.1]}) + "\n")
    assert read_scores(path, "now") == {("a", AS_OF, ("x",)): [0.5]}
    path.write_text("{}\n")
    with pytest.raises(OutputError, match="line 1: expected a TagScores"):
        read_scores(path, "now")


def test_explanations_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, {f"explanations.v2.{key}": estimate([0.5, 0.7]) for key in ("diversity", "pass_rate")})
    values = explanation_figures({"before": path})
    assert list(values) == ["training.explanations.before.diversity", "training.explanations.before.pass_rate"]
    write_metrics(path, {"explanations.v2.diversity": estimate([0.5])})
    with pytest.raises(OutputError, match=r"lacks explanations\.v2\.pass_rate: expected figures of `recgpt eval expl"):
        explanation_figures({"before": path})


def test_the_page_shows_whatever_there_is(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_training_page(path, {}, "sft")
    assert "What training is worth" in path.read_text(encoding="utf-8")
    keys = ["v1.leaf.all.hr@30", "sft.tag_diversity", "weeks.control.leaf.new.hr@30", "sft-v1.alignment"]
    keys += ["sft/v1.leaf.new.hr@30", "explanations.before-1.0.diversity"]
    write_training_page(path, {f"training.{key}": Estimate(0.4, 0.3, 0.5, 7) for key in keys}, "sft")
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg") == 3 and page.count("n=7") == 6
    assert "before-1.0" in page and "sft/v1" in page


@pytest.fixture
def reward() -> Iterator[tuple[str, list[str]]]:
    """A reward model's address, and what it was asked: a longer prompt has a better score."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self._send({"data": [{"id": "scorer"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][-1]["content"])
            self._send({"data": [{"probs": [len(asked[-1]) / 100_000]}]})

        def _send(self, reply: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def test_the_command_measures_arms_one_after_another_and_goes_on(
    server: ScriptedServer, reward: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    items = enumerate(("turkey", "turkey", "pumpkin"))
    later = [(user, datetime(2017, 11, 18 + day, 12), item) for day, item in items for user in ("h1", "h2")]
    write_small_dataset(tmp_path / "shop", later)
    served: list[str] = []

    def serve(stack: ExitStack, context: Context, profile: str) -> None:
        server.model = context.model
        served.append(context.model)
        assert context.request_timeout == 3600  # many households wait for each other

    monkeypatch.setattr("recgpt.evaluate.serve_for", serve)

    def answer(agent: str, body: dict[str, object]) -> Reply:
        untrained = body["model"] == BASE_MODEL and agent == "expert"
        return Reply("no" if untrained else good_answer(agent, body))

    server.answer = answer
    url, asked = reward
    common = ["eval", "training", "--dataset", str(tmp_path / "shop"), "--base-url", server.base_url]
    common += ["--set", "vocabulary=any", "--set", "tags_per_expert=15"]
    common += ["--reward", "scorer", "--reward-url", url]

    def command(*more: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*common, *more])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    assert "there is no arm best; take some of v1, base" in command("--arm", "best=m", code=1)
    assert "--arm 'sft': expected NAME=MODEL" in command("--arm", "sft", code=1)
    assert "is the second of its name" in command("--arm", "sft=a", "--arm", "sft=b", code=1)
    assert "there is no split 'train'" in command("--split", "train", code=1)
    assert not served and not (tmp_path / "runs" / "eval" / "training").exists()

    command("--arm", "sft=tuned", "--align-users", "1")
    assert list(dict.fromkeys(served)) == [DEFAULT_MODEL, BASE_MODEL, "tuned"]
    out = tmp_path / "runs" / "eval" / "training"
    values = json.loads((out / "metrics.json").read_text())
    for name in ("v1", "sft"):
        figures = ("leaf.all.hr@30", "leaf.new.hr@30", "tag_diversity", "length", "alignment", "valid_calls")
        assert {f"training.{name}.{figure}" for figure in figures} <= values.keys()
    assert values["training.sft-base.leaf.all.hr@30"]["n"] == values["training.sft.valid_calls"]["n"] == 2
    assert values["training.sft.valid_calls"]["mean"] == 1 and values["training.base.valid_calls"]["mean"] < 1
    assert "training.base.alignment" not in values  # it has no tags
    assert values["training.sft.alignment"]["n"] == 1
    assert values["training.weeks.thanksgiving.leaf.all.hr@30"]["n"] == 2
    assert (out / "report.html").read_text(encoding="utf-8").count("<svg") == 3

    before = len(server.requests), len(asked)
    more = ["--arm", "grpo_crs=tuned", "--best", "sft"]  # the same weights as those of another arm
    shown = command("--arm", "sft=tuned", "--align-users", "1", *more)
    assert (len(server.requests), len(asked)) == before and "tag_diversity" in shown
    again = json.loads((out / "metrics.json").read_text())
    assert again["training.grpo_crs-sft.tag_diversity"]["mean"] == 0
    assert {key: again[key] for key in values} == values

    shown = command("--arm", "crs_listwise=other", "--users", "1", "--align-users", "0")
    assert "v1: 1 households that another arm lacks are left out; --users 2 asks them all" in shown
    values = json.loads((out / "metrics.json").read_text())
    assert values["training.v1.valid_calls"]["n"] == 1
    assert "holds another run (split differ)" in command("--split", "validation", code=1)
    command("--split", "validation", "--out", "validation", "--best", "sft", "--align-users", "0")
    values = json.loads((tmp_path / "validation" / "metrics.json").read_text())
    assert "training.sft-v1.valid_calls" in values and not any("weeks" in key for key in values)
    assert served[-1] == DEFAULT_MODEL  # the best arm, where no model is given
