from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import AS_OF, write_small_dataset
from tools.dataset import Dataset, check_dataset, open_dataset
from tools.errors import DatasetError, NoHistoryError, UnknownUserError
from tools.history import number_lines, read_history


def test_events_before_excludes_the_moment_itself(small: Dataset) -> None:
    moment = datetime(2017, 11, 14, 18)
    assert small.events_before(moment)["timestamp"].max() < moment
    assert small.events_before(datetime(2017, 11, 14, 18, 0, 1))["timestamp"].max() == moment


def test_unknown_user_names_the_file_and_some_users(small: Dataset) -> None:
    with pytest.raises(UnknownUserError, match=r"'nobody' is not in .*users\.parquet \(3 users, such as h1"):
        small.history("nobody", AS_OF)


def test_user_without_history_and_too_early_a_moment_are_told_apart(small: Dataset) -> None:
    with pytest.raises(NoHistoryError, match="no event at all"):
        small.history("new", AS_OF)
    with pytest.raises(NoHistoryError, match="the first is at 2017-11-10 12:00"):
        small.history("h2", datetime(2017, 11, 1))


def test_sample_is_seeded_and_only_of_users_with_history(small: Dataset) -> None:
    assert small.sample_users(2, 7, AS_OF) == small.sample_users(2, 7, AS_OF)
    with pytest.raises(DatasetError, match="3 users were asked for, 2 have events"):
        small.sample_users(3, 7, AS_OF)


def test_damaged_file_is_named(small_dir: Path) -> None:
    (small_dir / "events.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match=r"events\.parquet could not be read"):
        open_dataset(small_dir)
    assert [fault.file for fault in check_dataset(small_dir)] == ["events.parquet"]


@pytest.mark.parametrize("table", ["items", "users", "events", "signals"])
def test_flipped_bytes_are_an_error_that_names_the_file(small_dir: Path, table: str) -> None:
    path = small_dir / f"{table}.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        for fault in check_dataset(small_dir):  # whatever is damaged is a fault, never a crash
            assert fault.file.endswith(".parquet")


def test_values_of_another_type_are_faults_with_their_row(small_dir: Path) -> None:
    events = pl.read_parquet(small_dir / "events.parquet")
    texts = events["quantity"].cast(pl.String).to_list()
    texts[3] = "many"
    events.with_columns(quantity=pl.Series(texts)).write_parquet(small_dir / "events.parquet")
    assert [str(f) for f in check_dataset(small_dir)] == [
        "events.parquet, column quantity, row 3: found 'many', expected Float64"
    ]
    with pytest.raises(DatasetError, match="row 3: found 'many'"):
        open_dataset(small_dir)


def test_times_with_a_zone_are_converted_to_the_data_sets(small_dir: Path) -> None:
    events = pl.read_parquet(small_dir / "events.parquet")
    zoned = events.with_columns(pl.col("timestamp").dt.replace_time_zone("America/New_York"))
    zoned.write_parquet(small_dir / "events.parquet")
    assert open_dataset(small_dir).last_event == datetime(2017, 11, 14, 23)


def test_missing_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="recgpt data build completejourney"):
        open_dataset(tmp_path / "nothing")


def test_check_names_file_column_and_row(small_dir: Path) -> None:
    assert check_dataset(small_dir) == []
    events = pl.read_parquet(small_dir / "events.parquet")
    broken = events.with_row_index().with_columns(
        action=pl.when(pl.col("index") == 2).then(pl.lit("bought")).otherwise("action"),
        item_id=pl.when(pl.col("index") == 4).then(pl.lit("ghost")).otherwise("item_id"),
        quantity=pl.when(pl.col("index") == 5).then(-1.0).otherwise("quantity"),
    )
    broken.drop("index").write_parquet(small_dir / "events.parquet")
    items = pl.read_parquet(small_dir / "items.parquet")
    pl.concat([items, items.head(1)]).write_parquet(small_dir / "items.parquet")
    assert [(f.file, f.column, f.row) for f in check_dataset(small_dir)] == [
        ("items.parquet", "item_id", 8),
        ("events.parquet", "action", 2),
        ("events.parquet", "quantity", 5),
        ("events.parquet", "item_id", 4),
    ]
    assert "row 2: found 'bought', expected one of search, click" in str(check_dataset(small_dir)[1])


def test_history_lines_count_baskets_and_find_the_rhythm(small: Dataset) -> None:
    lines = {line.text: line for line in read_history(small, "h1", AS_OF)}
    milk = lines["Store Brand White Milk, 1 gal"]
    assert (milk.times, milk.every_days, milk.leaf) == (4, 7.0, "White Milk")
    assert milk.rhythm(AS_OF) == "bought 4x, every 7 days, last 26 days ago"
    formula = lines["Infant Formula, 13 oz"]
    assert formula.rhythm(AS_OF) == "bought once, 3 days ago"
    night = formula.last.replace(hour=23, minute=59)
    of_night = formula.model_copy(update={"last": night})
    assert of_night.rhythm(night + timedelta(minutes=2)) == "bought once, yesterday"
    assert of_night.rhythm(night + timedelta(hours=30)) == "bought once, 2 days ago"
    assert formula.rhythm(formula.last) == "bought once, today"


def test_history_orders_by_weight_then_numbers_by_category(small: Dataset) -> None:
    lines = read_history(small, "h1", AS_OF)
    assert lines[-1].text == "Infant Formula, 13 oz"  # one purchase weighs less than four
    numbered = number_lines(lines)
    assert [line.id for line in numbered] == ["h1", "h2", "h3", "h4"]
    assert [line.leaf for line in numbered] == ["Baby Diapers", "Infant Formula", "White Bread", "White Milk"]


def test_nothing_after_the_moment_reaches_the_history(tmp_path: Path) -> None:
    planted = [("h1", datetime(2017, 11, 17, 9, 0), "turkey"), ("h1", datetime(2018, 1, 1), "pumpkin")]
    dataset = open_dataset(write_small_dataset(tmp_path / "planted", planted))
    texts = [line.text for line in read_history(dataset, "h1", AS_OF)]
    assert len(texts) == 4
    assert not any("Turkey" in text or "Pumpkin" in text for text in texts)
