"""Kept answers of models, and files that they travel in."""

import sqlite3
from pathlib import Path

import pytest
import structlog
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


def spoil(path: Path, statement: str) -> None:
    """Change a store's file from outside, so that SQLite refuses what is asked of it next."""
    with sqlite3.connect(path) as file:
        file.execute(statement)
    file.close()


REFUSE_K2 = "CREATE TRIGGER refuse BEFORE INSERT ON answers WHEN NEW.key = 'k2' BEGIN SELECT RAISE(FAIL, 'full'); END"


def test_an_answer_that_can_not_be_kept_is_a_warning(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a.sqlite")
    spoil(tmp_path / "a.sqlite", REFUSE_K2)
    with structlog.testing.capture_logs() as events:
        store.put("k2", "paid for")
        store.put("k3", "kept")
    assert [(event["event"], event["log_level"], event["reason"]) for event in events] == [
        ("answer_not_kept", "warning", "full")
    ]
    assert (store.get("k2"), store.get("k3")) == (None, "kept")


def test_answers_that_can_not_be_read_name_the_file(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a.sqlite")
    spoil(tmp_path / "a.sqlite", "DROP TABLE answers")
    with pytest.raises(OutputError, match=r"a\.sqlite can't be read \(no such table"):
        store.get("k")
    with pytest.raises(OutputError, match=r"f\.xz could not be written from .*a\.sqlite"):
        store.save(tmp_path / "f.xz")


def test_none_of_a_file_is_kept_where_one_answer_can_not_be(tmp_path: Path) -> None:
    file, first, second = tmp_path / "f.xz", AnswerStore(tmp_path / "a.sqlite"), AnswerStore(tmp_path / "b.sqlite")
    for key in ("k1", "k2", "k3"):
        first.put(key, "v")
    first.save(file)
    spoil(tmp_path / "b.sqlite", REFUSE_K2)
    with pytest.raises(OutputError, match=r"f\.xz can't be kept in .*b\.sqlite \(full\)"):
        second.load(file)
    assert second.get("k1") is None
    spoil(tmp_path / "b.sqlite", "DROP TRIGGER refuse")  # no transaction was left open
    assert second.load(file) == 3 and second.get("k2") == "v"


def test_the_command_goes_both_ways(tmp_path: Path) -> None:
    kept, file, other = tmp_path / "a.sqlite", tmp_path / "f.xz", tmp_path / "b.sqlite"
    AnswerStore(kept).put("k", "v")
    for arguments in ([str(file), "--save", "--kept", str(kept)], [str(file), "--kept", str(other)]):
        assert CliRunner().invoke(app, ["eval", "answers", *arguments]).exit_code == 0
    assert AnswerStore(other).get("k") == "v"
