"""Files that commands write, and go on with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.human import Rating, read_ratings
from eval.lines import read_json_lines
from recgpt.output import write_whole
from tools.errors import DatasetError, OutputError


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    rating = Rating(text_id="a\u2028b\u0085c", dimension="Clarity", annotator="ann", value=1)
    path.write_text(f"{rating.model_dump_json()}\n" * 2)
    assert read_json_lines(path, Rating) == [rating, rating]
    assert read_ratings(path, [rating.text_id]) == [rating]
    assert read_json_lines(tmp_path / "none.jsonl", Rating) == []


def test_a_line_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    rating = Rating(text_id="a", dimension="Clarity", annotator="ann", value=1)
    path.write_bytes(rating.model_dump_json().encode() + b'\n{"text_id": "\xff"}\n')
    with pytest.raises(OutputError, match=r"labels\.jsonl, line 2: expected a Rating, found (.|\n)*remove the line"):
        read_json_lines(path, Rating)
    with pytest.raises(OutputError, match="can't be read"):
        read_json_lines(tmp_path, Rating)


def test_a_file_that_can_not_be_written_whole_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "texts.jsonl"
    write_whole(path, ["a\n", "b\n"])

    def parts(error: Exception) -> Iterator[str]:
        yield "c\n"
        raise error

    with pytest.raises(DatasetError):
        write_whole(path, parts(DatasetError("no household")))
    with pytest.raises(OutputError, match="what was there before is kept"):
        write_whole(path, parts(OSError(28, "No space left on device")))
    assert path.read_text() == "a\nb\n"
    write_whole(path, ["d\n"])
    assert [one.name for one in path.parent.iterdir()] == ["texts.jsonl"] and path.read_text() == "d\n"
