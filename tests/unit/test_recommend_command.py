"""`recgpt recommend` as a person meets it, with a scripted server."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import Recommendation
from recgpt.cli import app
from recgpt.recommend import resolve_judge
from tests.conftest import write_small_dataset
from tests.scripted_server import MODEL, Reply, ScriptedServer, good_answer
from tools.models import DEFAULT_MODEL, JUDGE_MODEL

AS_OF = ["--as-of", "2017-11-17T09:00:00"]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(directory: Path, server: ScriptedServer | None, *arguments: str) -> tuple[int, str, list[dict]]:
    """Exit code, what a person reads, and the lines of standard output."""
    endpoint = ["--base-url", server.base_url, "--model", MODEL] if server else []
    result = CliRunner().invoke(app, ["recommend", "--dataset", str(directory), *endpoint, *arguments])
    assert not isinstance(result.exception, Exception), result.exception
    return result.exit_code, result.stderr, [json.loads(line) for line in result.stdout.splitlines() if line]


def test_a_line_a_household_that_fits_the_published_schema(small_dir: Path, server: ScriptedServer) -> None:
    code, said, lines = run(small_dir, server, "--sample", "2", "--seed", "7", *AS_OF)
    assert code == 0
    assert sorted(line["user_id"] for line in lines) == ["h1", "h2"]
    published = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    for line in lines:
        jsonschema.validate(line, published)
        assert len(line["items"]) >= 3
        assert line["settings"] == {"dataset": str(small_dir), "model": MODEL}  # what differs from the defaults
    assert "2 households, 12 items, 0 failures" in said


def test_real_households_with_a_model_that_answers_well(journey_dir: Path, server: ScriptedServer) -> None:
    code, _, lines = run(journey_dir, server, "--sample", "3", "--seed", "7", *AS_OF)
    assert code == 0
    for line in lines:
        assert len({persona["name"] for persona in line["personas"]}) >= 2
        assert len({tag["tag"] for tag in line["tags"]}) >= 10
        assert len({item["category"][-1] for item in line["items"]}) >= 2
        assert len(line["items"]) >= 3


def test_a_user_that_can_not_be_served_does_not_stop_the_others(small_dir: Path, server: ScriptedServer) -> None:
    code, said, lines = run(small_dir, server, *AS_OF, "--user", "ghost", "--user", "h1", "--user", "new")
    assert code == 1
    assert [line["user_id"] for line in lines] == ["h1"]
    assert "user 'ghost' is not in" in said
    assert "user 'new' has no event at all" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample", "1", "--as-of", "2016-01-01"], "nothing happened before 2016-01-01 00:00"),
        (["--sample", "9", *AS_OF], "9 users were asked for, 2 have events"),
        (AS_OF, "give --user ID or --sample N"),
        (
            ["--sample", "1", "--set", "personas=99", *AS_OF],
            "setting personas: Input should be less than or equal to 8",
        ),
        (["--sample", "1", "--set", "persons=3", *AS_OF], "setting persons: Extra inputs are not permitted"),
        (["--sample", "1", "--set", "personas", *AS_OF], "expected NAME=VALUE"),
        (
            ["--sample", "1", "--profile", "tpu", *AS_OF],
            "there is no serving profile 'tpu'; take one of cpu, cpu-compiled, fp8",
        ),
    ],
)
def test_wrong_arguments_are_explained(
    small_dir: Path, server: ScriptedServer, arguments: list[str], message: str
) -> None:
    code, said, lines = run(small_dir, server, *arguments)
    assert (code, lines) == (1, [])
    assert message in said


def test_no_server_at_the_endpoint(small_dir: Path) -> None:
    result = CliRunner().invoke(
        app, ["recommend", "--dataset", str(small_dir), "--base-url", "http://127.0.0.1:9/v1", "--sample", "1", *AS_OF]
    )
    assert result.exit_code == 1
    assert "no server answers at http://127.0.0.1:9/v1; start one there" in result.stderr


def test_another_model_at_the_endpoint(small_dir: Path, server: ScriptedServer) -> None:
    code, said, _ = run(small_dir, server, "--sample", "1", *AS_OF, "--model", "other")
    assert code == 1
    assert "serves scripted, not 'other'" in said


def test_an_existing_file_is_never_overwritten_and_can_be_continued(
    small_dir: Path, server: ScriptedServer, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(small_dir, server, "--user", "h1", "--out", str(out), *AS_OF)[0] == 0
    code, said, _ = run(small_dir, server, "--sample", "2", "--out", str(out), *AS_OF)
    assert code == 1
    assert "is there already; give --resume" in said
    asked = len(server.requests)
    code, said, _ = run(small_dir, server, "--sample", "2", "--out", str(out), "--resume", *AS_OF)
    assert code == 0
    assert [json.loads(line)["user_id"] for line in out.read_text().splitlines()] == ["h1", "h2"]
    assert (
        len([body for body in server.requests[asked:] if "personas" in str(body["response_format"])]) == 1
    )  # h2 alone
    code, said, _ = run(small_dir, server, "--sample", "2", "--out", str(out), "--resume", "--as-of", "2017-11-20")
    assert code == 1
    assert "this run is as of 2017-11-20 00:00:00; give the same --as-of" in said
    out.write_text(out.read_text() + "{half a li")  # what a crash leaves
    assert run(small_dir, server, "--sample", "2", "--out", str(out), "--resume", *AS_OF)[0] == 0
    assert len(out.read_text().splitlines()) == 2
    out.write_text("{}\n" + out.read_text())
    code, said, _ = run(small_dir, server, "--sample", "2", "--out", str(out), "--resume", *AS_OF)
    assert code == 1
    assert "line 1 is no recommendation" in said


def test_the_lines_beside_a_report_stay_until_others_can_be_made(
    small_dir: Path, server: ScriptedServer, tmp_path: Path
) -> None:
    page, lines = tmp_path / "page.html", tmp_path / "page.jsonl"
    arguments = ["--report", str(page), *AS_OF]
    assert run(small_dir, server, "--user", "h1", *arguments)[0] == 0
    before = lines.read_text()
    nowhere = ["--base-url", "http://127.0.0.1:9/v1", "--user", "h2"]
    assert run(small_dir, None, *nowhere, *arguments)[0] == 1
    assert lines.read_text() == before
    code, said, _ = run(small_dir, server, "--user", "h2", "--report", str(lines), *AS_OF)
    assert code == 1 and "are the same file" in said
    assert lines.read_text() == before
    page.unlink()
    code, said, _ = run(small_dir, server, "--user", "ghost", *arguments)
    assert code == 1 and "user 'ghost' is not in" in said
    assert lines.read_text() == before and not page.exists()  # no page of another call's lines
    assert run(small_dir, server, "--user", "h2", *arguments)[0] == 0
    assert [json.loads(line)["user_id"] for line in lines.read_text().splitlines()] == ["h2"]


def test_lines_of_other_settings_are_not_mixed(small_dir: Path, server: ScriptedServer, tmp_path: Path) -> None:
    arguments = ["--set", "judge_model=" + MODEL, "--set", "items=1", "--user", "h1", *AS_OF]
    kept = f"--set answers={tmp_path / 'answers.sqlite'}".split()  # where something is does not matter
    for number, (made, other, message) in enumerate(
        (
            ([], ["--judge"], "has household h1 with judge=default, this run has judge=True"),
            (["--judge", *kept], [], "has household h1 with judge=True, this run has judge=default"),
            ([], ["--set", "final_tags=5"], "with final_tags=default, this run has final_tags=5; give the same"),
        )
    ):
        out = ["--out", str(tmp_path / f"{number}.jsonl")]
        assert run(small_dir, server, *arguments, *out, *made)[0] == 0
        assert run(small_dir, server, *arguments, *out, *made, "--resume")[0] == 0
        code, said, _ = run(small_dir, server, *arguments, *out, *other, "--resume")
        assert code == 1 and message in said


def test_a_server_that_dies_in_the_middle_keeps_what_is_done(tmp_path: Path, server: ScriptedServer) -> None:
    directory = write_small_dataset(tmp_path / "two")
    out = tmp_path / "out.jsonl"

    def answer(name: str, body: dict) -> Reply:
        if out.exists() and out.read_text().count("\n") == 1:
            server.close()
            return Reply(status=500)
        return Reply(good_answer(name, body))

    server.answer = answer
    code, said, _ = run(directory, server, "--sample", "2", "--out", str(out), "--concurrency", "1", *AS_OF)
    assert code == 1
    assert "stopped answering after 1 of 2 households; their lines are kept" in said
    assert len(out.read_text().splitlines()) == 1
    Recommendation.model_validate_json(out.read_text())


def test_a_full_disk_keeps_whole_lines(small_dir: Path, server: ScriptedServer, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the write fails in the middle of the second line."""
    out = tmp_path / "out.jsonl"
    assert run(small_dir, server, "--user", "h1", "--out", str(out), *AS_OF)[0] == 0
    first = out.stat().st_size
    out.unlink()
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({first + 2000}, {first + 2000}));"
        "from recgpt.cli import app; app()"
    )
    command = [sys.executable, "-c", limited, "recommend", "--dataset", str(small_dir), "--base-url", server.base_url]
    command += ["--model", MODEL, "--user", "h1", "--user", "h2", "--out", str(out), "--concurrency", "1", *AS_OF]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "File too large; the 1 lines written before are kept" in said
    assert out.read_text().count("\n") == 1
    assert Recommendation.model_validate_json(out.read_text()).user_id == "h1"


def test_log_lines_are_json_with_run_and_user(small_dir: Path, server: ScriptedServer, tmp_path: Path) -> None:
    run(small_dir, server, "--sample", "2", *AS_OF)
    events = [json.loads(line) for line in (tmp_path / "runs" / "recommend.log.jsonl").read_text().splitlines()]
    calls = [event for event in events if event["event"] == "model_call"]
    assert len(calls) == len(server.requests)
    assert {call["user_id"] for call in calls} == {"h1", "h2"}
    assert len({call["run_id"] for call in calls}) == 2 and all(call["run_id"] for call in calls)
    assert {call["prompt"] for call in calls} >= {"planner/v1", "expert/v1", "arbiter/v1", "style/v1", "explainer/v1"}


def test_the_default_moment_is_after_the_last_event(small_dir: Path, server: ScriptedServer) -> None:
    _, _, lines = run(small_dir, server, "--user", "h1")
    assert datetime.fromisoformat(lines[0]["as_of"]) == datetime(2017, 11, 14, 18, 0, 1)


def test_households_run_beside_each_other(small_dir: Path, server: ScriptedServer) -> None:
    running: list[int] = []
    now = {"n": 0}

    def answer(name: str, body: dict) -> Reply:
        now["n"] += 1
        running.append(now["n"])
        time.sleep(0.05)
        now["n"] -= 1
        return Reply(good_answer(name, body))

    server.answer = answer
    run(small_dir, server, "--sample", "2", "--set", "personas=2", "--set", "items=1", *AS_OF)
    assert max(running) > 2  # one household alone has two experts at most


def test_the_judge_may_have_a_server_of_its_own(
    small_dir: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = ScriptedServer()
    second.model = "judge"
    monkeypatch.setattr("recgpt.recommend.JUDGE_BASE_URL", second.base_url)
    arguments = ["--user", "h1", "--judge", "--set", "items=2", *AS_OF]
    try:
        code, said, lines = run(small_dir, server, *arguments, "--set", "judge_model=judge")
        assert code == 0, said
        assert all(item["verdict"] for item in lines[0]["items"])
        assert second.prompts("evaluator") and second.prompts("reviewer") and not second.prompts("planner")
        assert not server.prompts("evaluator")
        code, said, _ = run(small_dir, server, *arguments, "--set", "judge_model=other")
        assert code == 1 and "serves judge, not 'other'" in said
    finally:
        second.close()
    assert run(small_dir, server, *arguments)[0] == 0  # the judge's model is that of the others
    assert server.prompts("evaluator")


def test_a_judge_that_is_measured_is_not_the_one_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECGPT_JUDGE_MODEL", "of-pages")
    monkeypatch.setenv("RECGPT_JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
    endpoint = resolve_judge([], model="measured", base_url="http://127.0.0.1:8/v1").endpoint("evaluator")
    assert (endpoint.model, endpoint.base_url) == ("measured", "http://127.0.0.1:8/v1")


def test_the_default_model_is_judged_by_the_tuned_judge_and_another_one_by_itself() -> None:
    assert Context().endpoint("evaluator").model == JUDGE_MODEL
    assert Context(model="own").endpoint("reviewer").model == "own"
    assert Context(judge_model="other").endpoint("one_shot").model == "other"
    assert resolve_judge([], model=DEFAULT_MODEL).endpoint("evaluator").model == DEFAULT_MODEL
