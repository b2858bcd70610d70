"""The flywheel and `train all` with scripted steps: what is run, what is kept, when it ends, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from eval.judged import JudgedText
from eval.tags import TagRun
from eval.training import HITS
from recgpt import steps
from recgpt.cli import app
from recgpt.steps import steps_in
from tests.conftest import write_small_dataset
from tests.unit.test_grpo import write_data
from tests.unit.test_reward_training import texts as judged_texts
from tests.unit.test_training_table import cases, run
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import OutputError, TrainingError
from tools.models import DEFAULT_MODEL, JUDGE_MODEL
from training.flywheel import Round, best_round, judge_round, new_candidates, read_round, reason_to_end

BAD, ALL, BOTH = (), ("white milk",), ("white milk", "white bread")
"""What policies write: nothing, what the household always buys, and what is new to it too."""


def compared(small: Dataset, before: Sequence[TagRun], after: Sequence[TagRun], number: int = 1) -> Round:
    return judge_round(number, ("start", "own"), (before, after), small, open_embedder(PACKAGED_MODEL))


def runs_of(tags: Sequence[str], users: str = "abc") -> list[TagRun]:
    return [run(case, *tags) for case in cases(users)]


# ---- decisions --------------------------------------------------------------------------------------------------


def test_a_round_is_kept_where_the_same_households_get_more(small: Dataset) -> None:
    better = compared(small, runs_of(ALL), runs_of(BOTH))
    assert better.kept and (better.start, better.policy) == ("start", "own")
    assert [better.before[key].mean for key in HITS] == [0.5, 0]
    assert [better.after[key].mean for key in HITS] == [1, 1]
    assert better.difference.mean == pytest.approx(0.75) and better.difference.n == 3
    assert not compared(small, runs_of(BOTH), runs_of(ALL)).kept
    assert not compared(small, runs_of(ALL), runs_of(ALL)).kept  # as good is not better


def test_only_shared_households_count_and_one_without_new_leaves_counts_by_all(small: Dataset) -> None:
    a, b, _ = cases()
    known = replace(b, bought=b.target)  # there is nothing new in its basket
    before = [run(a), run(known)]
    assert compared(small, before, [run(a, *ALL)]).difference.n == 1
    found = compared(small, before, [run(known, *BOTH), run(a, *ALL)])
    assert found.difference.mean == pytest.approx((1 + (0.5 + 0) / 2) / 2)
    assert found.after[HITS[1]].n == 1 and found.after[HITS[0]].n == 2
    nothing_new = compared(small, [run(known)], [run(known, *BOTH)])
    assert nothing_new.kept and list(nothing_new.after) == [HITS[0]]
    with pytest.raises(OutputError, match="no household is in all arms"):
        compared(small, [run(a)], [run(b)])


def test_it_ends_with_a_round_that_is_not_kept_or_with_the_last_one(small: Dataset) -> None:
    first = compared(small, runs_of(BAD), runs_of(ALL))
    worse = compared(small, runs_of(ALL), runs_of(BAD), number=2)
    assert reason_to_end([], 2) is None and reason_to_end([first], 2) is None
    assert reason_to_end([first], 1) == "1 rounds are done"
    assert reason_to_end([first, worse], 5) == (
        "round 2 does not improve on the validation households, and is not kept"
    )
    assert (best_round([]), best_round([first]), best_round([first, worse])) == (0, 1, 1)


def test_figures_are_read_as_they_were_written(small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert read_round(path) is None
    own = compared(small, runs_of(BAD), runs_of(ALL))
    path.write_text(own.model_dump_json())
    assert read_round(path) == own
    path.write_text("{}")
    with pytest.raises(OutputError, match=r"no figures of a round"):
        read_round(path)


def test_a_text_is_a_candidate_of_its_context_once() -> None:
    one, other = judged_texts()[:2]
    again = one.model_copy(
        update={"id": "again", "task": one.task.model_copy(update={"subject": "FRESH milk for the week"})}
    )
    elsewhere = one.model_copy(update={"context": "another"})
    assert new_candidates([again, other, elsewhere, other], [one]) == [other, elsewhere]


# ---- the command ------------------------------------------------------------------------------------------------


class Scripted:
    """Runs no command: checks that each could be run, and writes what it would."""

    def __init__(self, worth: dict[str, Sequence[str]]) -> None:
        self.worth = worth
        """The tags that a model writes, by a part of its name."""
        self.asked: list[dict[str, Any]] = []
        """Options of the commands so far, with their name as `command`."""
        self.code: Callable[[str, Path], int] = lambda command, out: 0

    def __call__(self, arguments: Sequence[str], lock: int) -> int:
        command, options = parsed(arguments)
        self.asked.append({"command": command, **options})
        out: Path = options["out"]
        if code := self.code(command, out):
            return code
        getattr(self, command.replace(" ", "_"))(out, options)
        return 0

    @property
    def commands(self) -> list[str]:
        found = [one["command"] for one in self.asked]
        self.asked.clear()
        return found

    def judge_sample(self, out: Path, options: dict[str, Any]) -> None:
        out.mkdir(parents=True)
        written = [judged(out.parent.name), judged("the same in all rounds")]
        (out / "texts.jsonl").write_text("".join(text.model_dump_json() + "\n" for text in written))

    def eval_arm(self, out: Path, options: dict[str, Any]) -> None:
        tags = next(tags for part, tags in self.worth.items() if part in options["model"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(one.model_dump_json() + "\n" for one in runs_of(tags)))

    def card(self, out: Path, options: dict[str, Any]) -> None:
        (out / "adapter").mkdir(parents=True)
        (out / "adapter" / "card.json").write_text("{}")

    train_reward = train_grpo = train_sft = card

    def judge_data(self, out: Path, options: dict[str, Any]) -> None:
        out.mkdir(parents=True)
        (out / "card.json").write_text("{}")

    train_data = judge_data


def parsed(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A command of `recgpt` and its options; fails where it would be refused."""
    group, name, *rest = arguments
    command = get_command(app).commands[group].commands[name]
    return f"{group} {name}", command.make_context(name, rest).params


def judged(subject: str) -> JudgedText:
    """A graded sample of the policy."""
    text = judged_texts()[0]
    return text.model_copy(update={"id": subject, "task": text.task.model_copy(update={"subject": subject})})


ROUND = ["judge sample", "train reward", "train grpo", "eval arm"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a shop, training data and judged texts, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECGPT_DATASET", str(write_small_dataset(tmp_path / "shop")))
    write_data(tmp_path / "data")
    (tmp_path / "texts.jsonl").write_text("".join(text.model_dump_json() + "\n" for text in judged_texts()))
    return tmp_path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Two rounds that improve, and a third that doesn't."""
    own = Scripted({DEFAULT_MODEL: BAD, "round-1": ALL, "round-2": BOTH, "round-3": BOTH})
    monkeypatch.setattr(steps, "run_command", own)
    return own


def turn(*more: str, code: int = 0) -> str:
    """Run the flywheel; what it says, in one line."""
    common = ["train", "flywheel", "--out", "wheel", "--data", "data", "--texts", "texts.jsonl", "--users", "3"]
    result = CliRunner().invoke(app, [*common, *more])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def state() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("wheel/flywheel.json").read_text())
    return found


def test_rounds_follow_each_other_until_one_is_not_kept(here: Path, scripted: Scripted) -> None:
    said = turn("--rounds", "5", "--households", "10", "--profile", "cpu")
    first, *asked = scripted.asked
    assert (first["command"], first["model"], first["users"]) == ("eval arm", DEFAULT_MODEL, 3)
    assert [one["command"] for one in asked] == ROUND * 3
    samples, rewards, policies, arms = (asked[place::4] for place in range(4))
    wheel = Path("wheel")
    best = [DEFAULT_MODEL, *(str(wheel / f"round-{number}" / "policy" / "adapter") for number in (1, 2))]
    assert [one["model"] for one in samples] == [one["adapter"] for one in policies] == best
    assert {(one["judge"], one["households"], one["seed"], one["profile"]) for one in samples} == {
        (JUDGE_MODEL, 10, 7, "cpu")
    }
    own = [wheel / f"round-{number}" / "candidates.jsonl" for number in (1, 2, 3)]
    assert [one["texts"] for one in rewards] == [[Path("texts.jsonl"), *own[:number]] for number in (1, 2, 3)]
    assert {one["model"] for one in rewards} == {JUDGE_MODEL}
    assert [one["reward"] for one in policies] == [str(path.parent / "reward" / "adapter") for path in own]
    assert {(one["agent"], one["shaping"], one["recipe"]) for one in policies} == {("expert", "crs", "cpu")}
    assert [one["seed"] for one in policies] == [7, 8, 9]
    assert [one["model"] for one in arms] == [*best[1:], str(wheel / "round-3" / "policy" / "adapter")]
    candidates = [[json.loads(line)["id"] for line in path.read_text().splitlines()] for path in own]
    assert candidates == [["round-1", "the same in all rounds"], ["round-2"], ["round-3"]]

    found = state()
    assert found["best"] == best[2] and found["ended"] == (
        "round 3 does not improve on the validation households, and is not kept"
    )
    assert [one["kept"] for one in found["rounds"]] == [True, True, False]
    assert found["rounds"][1] == json.loads((wheel / "round-2" / "figures.json").read_text())
    assert found["rounds"][1]["start"] == best[1] and found["rounds"][1]["difference"]["n"] == 3
    assert found["settings"]["seed"] == 7 and found["settings"]["adapter"].startswith(f"{DEFAULT_MODEL}@")
    assert "round 3: not kept" in said and f"best policy: {best[2]}" in said

    scripted.asked.clear()
    assert "the flywheel ends: round 3 does not improve" in turn("--rounds", "9", "--households", "10")
    assert scripted.commands == [] and state() == found
    assert "holds another run (seed differ)" in turn("--seed", "8", "--households", "10", code=1)


def test_more_rounds_go_on_and_fewer_are_those_that_are_there(here: Path, scripted: Scripted) -> None:
    assert "the flywheel ends: 1 rounds are done" in turn("--rounds", "1")
    assert scripted.commands == ["eval arm", *ROUND]
    turn("--rounds", "2")
    assert scripted.commands == ROUND
    turn("--rounds", "1")
    assert scripted.commands == [] and len(state()["rounds"]) == 2


@pytest.mark.parametrize("failing", ROUND)
def test_a_round_that_was_stopped_goes_on_where_it_was(here: Path, scripted: Scripted, failing: str) -> None:
    scripted.code = lambda command, out: 9 if command == failing and "round-2" in str(out) else 0
    said = turn("--rounds", "2", code=1)
    assert f"`recgpt {failing}" in said and "ended with code 9" in said
    assert state()["ended"] is None and len(state()["rounds"]) == 1
    assert not Path("wheel/round-2/figures.json").exists()
    scripted.asked.clear()
    scripted.code = lambda command, out: 0
    assert "there already" in turn("--rounds", "2") or failing == ROUND[0]
    assert scripted.commands == ROUND[ROUND.index(failing) :]
    assert [one["kept"] for one in state()["rounds"]] == [True, True]


def test_a_first_round_that_does_not_improve_keeps_the_start(here: Path, scripted: Scripted) -> None:
    scripted.worth["round-1"] = BAD
    assert f"best policy: {DEFAULT_MODEL}; `recgpt serve --model {DEFAULT_MODEL}`" in turn()
    assert state()["best"] == DEFAULT_MODEL and not state()["rounds"][0]["kept"]


def test_what_is_missing_is_said_before_the_first_step(here: Path, scripted: Scripted) -> None:
    for options, said in (
        (["--recipe", "tpu"], "there is no recipe 'tpu'; take one of cpu, gpu"),
        (["--profile", "tpu"], "there is no serving profile 'tpu'"),
        (["--adapter", "nowhere"], "'nowhere' is no adapter, which GRPO goes on from"),
        (["--texts", "nowhere.jsonl"], "there is no file nowhere.jsonl; make it with `recgpt judge data`"),
        (["--data", "nowhere"], "nowhere holds no training data"),
    ):
        assert said in turn(*options, code=1)
    assert scripted.commands == [] and not Path("wheel").exists()


def test_train_all_runs_what_is_not_there_in_its_order(here: Path, scripted: Scripted) -> None:
    def command(code: int = 0) -> str:
        result = CliRunner().invoke(app, ["train", "all", "--out", "all", "--dataset", "shop", "--recipe", "gpu"])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    scripted.code = lambda name, out: 1 if out.name == "grpo-explainer" else 0
    assert "ended with code 1" in command(code=1)
    data, sft, texts, reward, policy = scripted.asked
    assert scripted.commands == ["train data", "train sft", "judge data", "train reward", "train grpo"]
    assert (data["dataset"], data["experts"]) == (Path("shop"), 1000) and texts["dataset"] == Path("shop")
    assert (sft["agent"], sft["data"], sft["recipe"]) == ("all", data["out"], "gpu")
    assert (reward["texts"], reward["loss"]) == ([Path("all/judge/texts.jsonl")], "listwise")
    assert reward["model"] == JUDGE_MODEL
    assert (policy["agent"], policy["recipe"]) == ("explainer", "gpu")
    assert (policy["data"], policy["adapter"]) == (Path("all/data"), "all/sft/adapter")
    assert policy["reward"] == "all/reward/adapter"

    scripted.code = lambda name, out: 0
    said = command()
    explainers, experts = scripted.asked
    assert scripted.commands == ["train grpo", "train grpo"]
    assert explainers == policy and (experts["agent"], experts["shaping"]) == ("expert", "crs")
    assert experts["adapter"] == "all/grpo-explainer/adapter" and experts["reward"] == policy["reward"]
    assert "`recgpt serve --model all/grpo-expert/adapter`" in said
    command()
    assert scripted.commands == []


# ---- steps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of `recgpt` a Python that runs the text it is given."""
    monkeypatch.setattr(steps, "RECGPT", (sys.executable, "-c"))


@pytest.mark.usefixtures("script")
def test_a_step_that_fails_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with steps_in(tmp_path / "out") as run_step:
        run_step("first", ["print('ran')"], False)
        run_step("second", ["print('ran too')"], True)
        with pytest.raises(TrainingError, match=r"third: `recgpt 'raise SystemExit\(3\)'` ended with code 3"):
            run_step("third", ["raise SystemExit(3)"], False)
    assert capfd.readouterr().out == "ran\n"


@pytest.mark.usefixtures("script")
def test_a_step_ends_with_its_run_and_may_put_things_away_first(tmp_path: Path) -> None:
    told = (
        "import pathlib, signal, sys, time\n"
        f"there = pathlib.Path({str(tmp_path)!r})\n"
        "def end(number, frame):\n"
        "    (there / 'stopped').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "(there / 'started').touch()\n"
        "time.sleep(60)\n"
    )

    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs have not
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt), steps_in(tmp_path / "out") as run_step:
            run_step("long", [told], False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "stopped").exists()


def test_a_run_waits_for_a_step_that_outlived_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started, ended, out = tmp_path / "started", tmp_path / "ended", tmp_path / "out"
    step = f"import pathlib as p, time; p.Path({str(started)!r}).touch(); time.sleep(2); p.Path({str(ended)!r}).touch()"
    run = (
        "import pathlib, sys\n"
        "from recgpt import steps\n"
        "steps.RECGPT = (sys.executable, '-c')\n"
        f"with steps.steps_in(pathlib.Path({str(out)!r})) as run_step:\n"
        f"    run_step('long', [{step!r}], False)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", run])
    while not started.exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    with steps_in(out):
        assert ended.exists()
    assert "waiting until it ends" in " ".join(capfd.readouterr().err.split())
