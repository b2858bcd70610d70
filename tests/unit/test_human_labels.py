"""Labels by people: kept in lines, taken over from public sets, given on a terminal page."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.schemas import Fact, JudgeTask
from eval.human import Rating, by_text, import_ab_redial, import_few_shot_explanations, read_ratings
from eval.judged import JudgedText
from recgpt.cli import app
from tools.errors import DatasetError, OutputError

RATING = Rating(text_id="t1", dimension="Clarity", annotator="ann", value=1)


def write_lines(path: Path, *lines: Rating | JudgedText) -> Path:
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return path


def text(text_id: str) -> JudgedText:
    facts = [Fact(name="item", text="White Milk")]
    task = JudgeTask(user_id="u", kind="explanations", subject_id="i", subject="A glass of milk.", facts=facts)
    return JudgedText(
        id=text_id, split="test", source="faithful", context="c", task=task, labels={}, evidence={}, grade=None
    )


def test_a_changed_mind_counts_and_two_minds_stand_side_by_side(tmp_path: Path) -> None:
    again = RATING.model_copy(update={"value": -1})
    other = RATING.model_copy(update={"annotator": "bob"})
    path = write_lines(tmp_path / "labels.jsonl", RATING, other, again)
    assert by_text(read_ratings(path, ["t1"])) == {"Clarity": {"t1": [-1.0, 1.0]}}


def test_ratings_of_unknown_texts_and_lines_that_are_none_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "labels.jsonl", RATING)
    with pytest.raises(DatasetError, match="rates 1 texts that are not among the texts, such as t1"):
        read_ratings(path, ["t2"])
    path.write_text('{"text_id": "t1"}\n')
    with pytest.raises(OutputError, match="line 1: expected a Rating"):
        read_ratings(path, ["t1"])


def test_exchanges_of_dialogues_become_texts_with_what_was_said_before(tmp_path: Path) -> None:
    columns = ["ConvId"]
    values = ["7"]
    for number in range(12):
        columns.append(f"utterance{number}")
        values.append(f"{'SYSTEM' if number % 2 == 0 else 'USER'}\tword{number}")
        if number % 4 == 3:
            columns += [f"{name}{number // 4 + 1}" for name in ("relevance", "interestingness", "overall")]
            values += ["4", "2", "5"]
    another = [value.replace("word0", "other0") for value in values]  # of the same id
    rows = [",".join(row) for row in (columns, values, values, another)]
    (tmp_path / "annotated_turns.csv").write_text("\n".join(rows) + "\n")
    found, ratings = import_ab_redial(tmp_path)
    assert len(found) == 6
    texts = found[:3]
    assert [one.id[-2:] for one in texts] == ["/1", "/2", "/3"] and len({one.id[:-2] for one in texts}) == 1
    assert texts[1].task.subject == "word4 word6"
    assert [fact.text for fact in texts[1].task.facts] == [
        "system: word0", "user: word1", "system: word2", "user: word3", "user: word5", "user: word7",
    ]  # fmt: skip
    assert by_text(ratings)["Relevance"] == {one.id: [4.0, 4.0] if one in texts else [4.0] for one in found}


def test_a_file_of_other_columns_is_told_from_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "annotated_turns.csv").write_text("ConvId,utterance0\n7,SYSTEM\thello\n")
    with pytest.raises(DatasetError, match=r"lacks utterance1, .*; found the columns ConvId, utterance0"):
        import_ab_redial(tmp_path)
    with pytest.raises(DatasetError, match=r"lacks Input\.id, .*Answer\.supports_label; found the columns ConvId"):
        import_few_shot_explanations(tmp_path)


@pytest.mark.parametrize("value", ["good", "nan"])
def test_a_value_that_is_no_number_is_named_by_file_and_row(tmp_path: Path, value: str) -> None:
    columns = ["ConvId", *(f"utterance{number}" for number in range(12))]
    columns += [f"{name}{exchange}" for name in ("relevance", "interestingness") for exchange in (1, 2, 3)]
    rows = [columns, [*columns[:13], *"123123"], [*columns[:13], "1", value, *"3123"]]
    (tmp_path / "annotated_turns.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    with pytest.raises(DatasetError, match=f"annotated_turns.csv, row 2 .*number as relevance2, found '{value}'"):
        import_ab_redial(tmp_path)


def test_few_shot_explanations_leave_out_what_can_not_be_judged(tmp_path: Path) -> None:
    head = (
        "Input.id,Input.question,Input.answer_choices,Input.gold_label,Input.explanation,Answer.generality_factuality"
    )
    rows = [f"{head},Answer.grammar,Answer.new_info,Answer.supports_label", "a,why?,b or c,b,because,-9,1,,0"]
    (tmp_path / "some.csv").write_text("\n".join(rows) + "\n")
    (found,), ratings = import_few_shot_explanations(tmp_path)
    assert found.task.subject == "because"
    assert [fact.text for fact in found.task.facts] == ["why?", "b or c", "the answer is b"]
    assert {(rating.dimension, rating.value) for rating in ratings} == {("Clarity", 1.0), ("Relevance", 0.0)}
    with pytest.raises(DatasetError, match="holds no CSV file"):
        import_few_shot_explanations(tmp_path / "none")


def test_a_person_labels_stops_and_goes_on(tmp_path: Path) -> None:
    texts, out = write_lines(tmp_path / "texts.jsonl", text("t1"), text("t2")), tmp_path / "labels.jsonl"
    command = [
        "judge",
        "label",
        "--annotator",
        "ann",
        "--texts",
        str(texts),
        "--out",
        str(out),
        "--dimension",
        "Clarity",
    ]
    first = CliRunner().invoke(app, command, input="x\np\nq\n")
    assert first.exit_code == 0, first.output
    assert [rating.text_id for rating in read_ratings(out, ["t1", "t2"])] == ["t1"]
    CliRunner().invoke(app, command, input="b\n")
    assert [rating.value for rating in read_ratings(out, ["t1", "t2"])] == [1.0, -1.0]
    CliRunner().invoke(app, [*command[:3], "bob", *command[4:]], input="n\nn\n")
    assert by_text(read_ratings(out, ["t1", "t2"]))["Clarity"] == {"t1": [1.0, 0.0], "t2": [-1.0, 0.0]}


def test_labels_of_others_are_taken_over_once_and_contradictions_are_told(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", text("t1"), text("t2"))
    against = RATING.model_copy(update={"annotator": "bob", "value": -1})
    unsure = RATING.model_copy(update={"annotator": "bob", "text_id": "t2", "value": 0})
    out = write_lines(tmp_path / "labels.jsonl", RATING, RATING.model_copy(update={"text_id": "t2"}))
    other = write_lines(tmp_path / "bob.jsonl", against, unsure)
    command = ["judge", "join", str(other), "--texts", str(texts), "--out", str(out)]
    first, again = (" ".join(CliRunner().invoke(app, command).output.split()) for _ in range(2))
    assert "2 labels taken over, 4 by 2 annotators" in first
    assert "0 labels taken over, 4 by 2 annotators" in again
    assert first.count("contradiction:") == 1 and "t1, Clarity: ann +1, bob -1" in first
    unknown = write_lines(tmp_path / "unknown.jsonl", unsure, RATING.model_copy(update={"text_id": "t3"}))
    before = out.read_text()
    failed = CliRunner().invoke(app, [*command[:2], str(unknown), *command[3:]])
    assert failed.exit_code == 1 and out.read_text() == before
