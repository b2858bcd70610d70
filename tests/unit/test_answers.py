"""Kept answers of models, and files that they travel in."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from recgpt.cli import app
from tools.answers import AnswerStore
from tools.errors import OutputError


def test_answers_travel_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl.xz"
    first, second = AnswerStore(tmp_path / "a.sqlite"), AnswerStore(tmp_path / "b.sqlite")
    first.put("k1", '{"text": "milk"}')
    first.put("k2", "bread\nand butter")
    assert first.save(file) == 2
    second.put("k1", "asked here")
    assert second.load(file) == 2
    assert (second.get("k1"), second.get("k2")) == ("asked here", "bread\nand butter")
    content = file.read_bytes()
    first.save(file)
    assert file.read_bytes() == content


def test_a_damaged_file_leaves_the_answers_as_they_were(tmp_path: Path) -> None:
    file, store = tmp_path / "answers.jsonl.xz", AnswerStore(tmp_path / "a.sqlite")
    for number in range(2000):
        store.put(f"k{number}", str(number * 7919))
    store.save(file)
    file.write_bytes(file.read_bytes()[:-200])
    other = AnswerStore(tmp_path / "b.sqlite")
    with pytest.raises(OutputError, match="holds no answers"):
        other.load(file)
    assert other.get("k1") is None
    with pytest.raises(OutputError, match="holds no answers"):
        other.load(tmp_path / "absent.xz")


def test_the_command_goes_both_ways(tmp_path: Path) -> None:
    kept, file, other = tmp_path / "a.sqlite", tmp_path / "f.xz", tmp_path / "b.sqlite"
    AnswerStore(kept).put("k", "v")
    for arguments in ([str(file), "--save", "--kept", str(kept)], [str(file), "--kept", str(other)]):
        assert CliRunner().invoke(app, ["eval", "answers", *arguments]).exit_code == 0
    assert AnswerStore(other).get("k") == "v"
