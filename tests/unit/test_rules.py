"""Small rules: the grade, sizes of things, the settings, the files of the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agents.context import Context
from agents.reviewer import grade_labels
from agents.schemas import DimensionLabel
from recgpt.diagram import mermaid

ROOT = Path(__file__).parents[2]


def labels(*values: str) -> list[DimensionLabel]:
    return [
        DimensionLabel(dimension=f"D{n}", label=value, evidence="e", probability=None)  # type: ignore[arg-type]
        for n, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "grade"),
    [
        (("positive", "positive", "negative"), "Bad"),
        (("neutral", "neutral"), "Average"),
        (("positive", "neutral"), "Superior"),
        (("positive", "neutral", "neutral"), "Average"),
        (("positive",), "Superior"),
    ],
)
def test_grade(values: tuple[str, ...], grade: str) -> None:
    assert grade_labels(labels(*values), 0.5) == grade


@given(st.lists(st.sampled_from(["positive", "neutral", "negative"]), min_size=1), st.floats(0.01, 1))
def test_any_negative_is_bad_and_order_does_not_matter(values: list[str], threshold: float) -> None:
    grade = grade_labels(labels(*values), threshold)
    assert (grade == "Bad") == ("negative" in values)
    assert grade == grade_labels(labels(*reversed(values)), threshold)


def test_no_labels_no_grade() -> None:
    with pytest.raises(ValueError, match="no labels"):
        grade_labels([], 0.5)


def test_settings_argument_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Context().personas == 3
    monkeypatch.setenv("RECGPT_PERSONAS", "5")
    assert Context().personas == 5
    assert Context(personas=4).personas == 4
    for bad in ({"personas": 1}, {"personas": 9}, {"planner_temperature": 3.0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Context(**bad)
    with pytest.raises(ValidationError):
        Context().personas = 2  # type: ignore[misc]


def test_studio_is_told_which_setting_belongs_to_which_node() -> None:
    fields = Context.model_json_schema()["properties"]
    assert fields["planner_instructions"]["langgraph_type"] == "prompt"
    assert fields["planner_instructions"]["langgraph_nodes"] == ["plan_intents"]
    assert (fields["personas"]["minimum"], fields["personas"]["maximum"]) == (2, 8)


def test_the_wheel_carries_every_file_of_its_packages(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "source")], check=True)
    subprocess.run([*command, str(tmp_path / "source")], check=True, capture_output=True)
    inside = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = ("recgpt", "training", "eval", "graphs", "agents", "tools", "prompts")
    assert {name for name in tracked if name.split("/")[0] in packages} - inside == set()


def test_the_readme_shows_the_graphs_as_they_are() -> None:
    assert mermaid().strip() in (ROOT / "README.md").read_text()
