"""The data set directory: its format, the reader that everything else stands on, and the check.

A data set is a directory of Parquet files and a `dataset.json`. `tools/datasets/FORMAT.md` is its
documentation for people; the tables below are the same in code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tools.errors import DatasetError, NoHistoryError, UnknownUserError
from tools.loading import load_once

Action = Literal["search", "click", "favourite", "cart", "purchase"]
SignalKind = Literal["weather", "holiday", "trend", "promotion", "event"]

ACTIONS = ("search", "click", "favourite", "cart", "purchase")
SIGNAL_KINDS = ("weather", "holiday", "trend", "promotion", "event")

_TIME = pl.Datetime("us")

ITEMS = pl.Schema(
    {
        "item_id": pl.String(),
        "title": pl.String(),
        "category": pl.List(pl.String()),
        "brand": pl.String(),
        "price": pl.Float64(),
        "attributes": pl.String(),
        "available_from": _TIME,
    }
)
USERS = pl.Schema({"user_id": pl.String(), "profile": pl.String(), "region": pl.String()})
EVENTS = pl.Schema(
    {
        "user_id": pl.String(),
        "timestamp": _TIME,
        "action": pl.String(),
        "item_id": pl.String(),
        "query": pl.String(),
        "session_id": pl.String(),
        "quantity": pl.Float64(),
        "value": pl.Float64(),
    }
)
SIGNALS = pl.Schema(
    {
        "start": _TIME,
        "end": _TIME,
        "kind": pl.String(),
        "region": pl.String(),
        "text": pl.String(),
        "categories": pl.List(pl.String()),
        "user_ids": pl.List(pl.String()),
    }
)
TABLES = {"items": ITEMS, "users": USERS, "events": EVENTS, "signals": SIGNALS}
OPTIONAL_TABLES = frozenset({"signals"})
OPTIONAL_COLUMNS = frozenset({("items", "available_from"), ("users", "region"), ("signals", "user_ids")})
REQUIRED_VALUES = {
    "items": ("item_id", "title", "category"),
    "users": ("user_id",),
    "events": ("user_id", "timestamp", "action"),
    "signals": ("start", "end", "kind", "text"),
}


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{value!r} is no IANA time zone, such as Europe/London") from error
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone)]
"""IANA name."""


class DatasetInfo(BaseModel):
    """`dataset.json`: what a reader must know that is not in the tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    locale: str = Field(pattern=r"^[a-z]{2,3}_[A-Z]{2}$", description="language_COUNTRY, such as en_US")
    time_zone: TimeZone = Field(description="IANA name of the zone that the timestamps are in")
    region: str | None = Field(None, description="where the users are, if they share one place")
    source: str
    licence: str
    counts: dict[str, int]
    notes: str = ""

    @property
    def country(self) -> str:
        """Two-letter country code of the locale."""
        return self.locale.split("_")[1]


BASKET = pl.coalesce("session_id", pl.col("timestamp").cast(pl.String)).alias("basket")
"""What is bought together: a session, or where the data has none, a moment."""


@dataclass(frozen=True)
class Fault:
    """One fault of a data set: where it is, what was found, what was expected."""

    file: str
    column: str
    row: int | None
    message: str

    def __str__(self) -> str:
        """`events.parquet, column action, row 17: ...`; rows count from 0."""
        place = f"{self.file}, column {self.column}" if self.column else self.file
        return f"{place}{'' if self.row is None else f', row {self.row}'}: {self.message}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set in memory; `open_dataset` makes it.

    Every reader of events goes through `events_before`, so that nothing at or after the moment of a
    request can reach a prompt, a trend or a ranking.
    """

    directory: Path
    info: DatasetInfo
    items: pl.DataFrame
    users: pl.DataFrame
    signals: pl.DataFrame
    _events: pl.DataFrame
    _user_rows: dict[str, tuple[int, int]]

    @property
    def first_event(self) -> datetime:
        """Timestamp of the earliest event."""
        return self._events["timestamp"].min()  # type: ignore[return-value]

    @property
    def last_event(self) -> datetime:
        """Timestamp of the latest event."""
        return self._events["timestamp"].max()  # type: ignore[return-value]

    def events_before(self, as_of: datetime, since: datetime | None = None) -> pl.DataFrame:
        """All events in `[since, as_of)`, columns as in `EVENTS`, ordered by user and time."""
        past = pl.col("timestamp") < as_of
        return self._events.filter(past if since is None else past & (pl.col("timestamp") >= since))

    def with_events(self, events: pl.DataFrame) -> Dataset:
        """The same data set with these events only, such as what may be trained on."""
        ordered, rows = _by_user(events)
        return replace(self, _events=ordered, _user_rows=rows)

    def history(self, user_id: str, as_of: datetime) -> pl.DataFrame:
        """The user's events strictly before `as_of`, oldest first.

        Raises:
            UnknownUserError: no such user.
            NoHistoryError: the user has no event before `as_of`.
        """
        self.user(user_id)
        start, length = self._user_rows.get(user_id, (0, 0))
        events = self._events.slice(start, length).filter(pl.col("timestamp") < as_of)
        if events.is_empty():
            if length == 0:
                raise NoHistoryError(f"user {user_id!r} has no event at all; take another user")
            first: datetime = self._events["timestamp"][start]
            raise NoHistoryError(
                f"user {user_id!r} has no event before {as_of:%Y-%m-%d %H:%M}, "
                f"the first is at {first:%Y-%m-%d %H:%M}; take a later --as-of"
            )
        return events

    def user(self, user_id: str) -> tuple[str | None, str | None]:
        """Profile text and region of a user, each None where the data has none."""
        row = self.users.filter(pl.col("user_id") == user_id)
        if row.is_empty():
            some = ", ".join(self.users["user_id"].head(3))
            raise UnknownUserError(
                f"user {user_id!r} is not in {self.directory / 'users.parquet'} "
                f"({self.users.height} users, such as {some})"
            )
        return row["profile"][0], row["region"][0] or self.info.region

    def sample_users(self, count: int, seed: int, as_of: datetime) -> list[str]:
        """`count` users with history before `as_of`, drawn without replacement, same for the same seed."""
        known = self.events_before(as_of).select(pl.col("user_id").unique().sort())
        if count > known.height:
            raise DatasetError(f"{count} users were asked for, {known.height} have events before {as_of}")
        return known["user_id"].sample(count, seed=seed, shuffle=True).to_list()


@load_once(maxsize=4)
def open_dataset(directory: Path) -> Dataset:
    """Read a data set directory into memory; one directory is read once a process.

    Raises:
        DatasetError: a file is missing or damaged, or has a fault; `check_dataset` lists them all.
    """
    info = read_info(directory)
    tables = {name: _fitting(directory, name, info.time_zone) for name in TABLES}
    if faults := check_tables(tables):
        raise DatasetError(f"{directory} has {len(faults)} faults, such as {faults[0]}; see `recgpt data check`")
    events, rows = _by_user(tables["events"])
    return Dataset(directory, info, tables["items"], tables["users"], tables["signals"], events, rows)


def _by_user(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, tuple[int, int]]]:
    """Events ordered by user and time, and each user's first row and number of rows."""
    ordered = events.sort("user_id", "timestamp", maintain_order=True)
    runs = ordered.with_row_index("row").group_by("user_id").agg(pl.col("row").min(), pl.len())
    return ordered, {user: (start, length) for user, start, length in runs.iter_rows()}


def read_info(directory: Path) -> DatasetInfo:
    """Read and validate `dataset.json`."""
    path = directory / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{path} is missing: {directory} is no data set directory. "
            "Make one with `recgpt data build completejourney` or `recgpt data import`"
        )
    try:
        return DatasetInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DatasetError(f"{path} is not a valid dataset.json: {error}") from error


def read_table(directory: Path, name: str, time_zone: str) -> tuple[pl.DataFrame, list[Fault]]:
    """One table in its schema, and the values that do not fit it (null in the table).

    An absent optional table or column comes back empty; times with a zone are converted to the data set's.

    Raises:
        DatasetError: the file is missing, damaged, or lacks a column.
    """
    path = directory / f"{name}.parquet"
    schema = TABLES[name]
    if not path.exists():
        if name in OPTIONAL_TABLES:
            return pl.DataFrame(schema=schema), []
        raise DatasetError(f"{path} is missing; a data set has items, users and events")
    table = _read_parquet(path)
    columns: dict[str, pl.Series] = {}
    faults: list[Fault] = []
    for column, dtype in schema.items():
        if column not in table.columns:
            if (name, column) not in OPTIONAL_COLUMNS:
                raise DatasetError(f"{path} lacks the column {column!r} (found: {', '.join(table.columns)})")
            columns[column] = pl.repeat(None, table.height, dtype=dtype, eager=True)
            continue
        found = table[column]
        if isinstance(found.dtype, pl.Datetime) and found.dtype.time_zone:
            found = found.dt.convert_time_zone(time_zone).dt.replace_time_zone(None)
        try:
            columns[column] = found.cast(dtype, strict=False)
        except pl.exceptions.PolarsError:
            columns[column] = pl.repeat(None, table.height, dtype=dtype, eager=True)
        lost = (columns[column].is_null() & found.is_not_null()).arg_true()
        faults += [Fault(path.name, column, row, f"found {found[row]!r}, expected {dtype}") for row in lost]
    return pl.DataFrame(columns), faults


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except BaseException as error:
        # Polars panics on some damaged files, with an exception that is no Exception and has no public name.
        if isinstance(error, pl.exceptions.PolarsError | OSError) or type(error).__name__ == "PanicException":
            raise DatasetError(f"{path} could not be read ({error}); it is damaged or not Parquet") from error
        raise


def _fitting(directory: Path, name: str, time_zone: str) -> pl.DataFrame:
    table, faults = read_table(directory, name, time_zone)
    if faults:
        raise DatasetError(f"{directory}: {len(faults)} values do not fit the format, such as {faults[0]}")
    return table


def write_dataset(directory: Path, info: DatasetInfo, tables: dict[str, pl.DataFrame]) -> None:
    """Write the tables and `dataset.json`; the last, so that a half-written directory is not one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dataset.json").unlink(missing_ok=True)
    for name, table in tables.items():
        partial = directory / f"{name}.parquet.partial"
        absent = [c for c in TABLES[name] if c not in table.columns and (name, c) in OPTIONAL_COLUMNS]
        whole = table.with_columns(pl.lit(None).alias(column) for column in absent)
        whole.select(pl.col(column).cast(dtype) for column, dtype in TABLES[name].items()).write_parquet(
            partial, compression="zstd"
        )
        partial.replace(directory / f"{name}.parquet")
    document = info.model_dump(mode="json")
    (directory / "dataset.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def check_dataset(directory: Path) -> list[Fault]:
    """All faults of a data set directory, by file, column and row (rows count from 0)."""
    faults: list[Fault] = []
    time_zone = "UTC"
    try:
        time_zone = read_info(directory).time_zone
    except DatasetError as error:
        faults.append(Fault("dataset.json", "", None, str(error)))
    tables: dict[str, pl.DataFrame] = {}
    for name in TABLES:
        try:
            tables[name], unfit = read_table(directory, name, time_zone)
            faults += unfit
        except DatasetError as error:
            faults.append(Fault(f"{name}.parquet", "", None, str(error)))
    seen = {(fault.file, fault.column, fault.row) for fault in faults}
    return faults + [f for f in check_tables(tables) if (f.file, f.column, f.row) not in seen]


def check_tables(tables: dict[str, pl.DataFrame]) -> list[Fault]:
    """Faults of values, and of references between tables; the tables have the format's columns already."""
    faults = [fault for name, table in tables.items() for fault in _check_table(name, table)]
    return faults + list(_check_references(tables))


def _check_table(name: str, table: pl.DataFrame) -> Iterator[Fault]:
    """Faults that show in one table alone."""
    file = f"{name}.parquet"

    def rows(column: str, bad: pl.Expr, expected: str) -> Iterator[Fault]:
        found = table.with_row_index("row").filter(bad).select("row", column)
        for row, value in found.iter_rows():
            yield Fault(file, column, row, f"found {value!r}, expected {expected}")

    for column in REQUIRED_VALUES[name]:
        yield from rows(column, pl.col(column).is_null(), "a value")
        if table.schema[column] == pl.String:
            yield from rows(column, pl.col(column).str.strip_chars() == "", "a text that is not empty")
    if name in ("items", "users"):
        key = f"{name[:-1]}_id"
        yield from rows(key, ~pl.col(key).is_first_distinct(), "an id that no earlier row has")
    if name == "items":
        empty = (pl.col("category").list.len() == 0) | pl.col("category").list.eval(
            pl.element().fill_null("").str.strip_chars() == ""
        ).list.any()
        yield from rows("category", empty, "a path from root to leaf without empty names")
        price = pl.col("price")
        yield from rows("price", (price < 0) | price.is_nan() | price.is_infinite(), "a finite price of 0 or more")
    if name == "events":
        yield from rows("action", ~pl.col("action").is_in(ACTIONS), f"one of {', '.join(ACTIONS)}")
        search = pl.col("action") == "search"
        yield from rows("query", search & pl.col("query").is_null(), "the query of the search")
        yield from rows("item_id", ~search & pl.col("item_id").is_null(), "the item that the action is on")
        for column in ("quantity", "value"):
            number = pl.col(column)
            yield from rows(column, (number < 0) | number.is_nan() | number.is_infinite(), "a finite number, 0 or more")
    if name == "signals":
        yield from rows("kind", ~pl.col("kind").is_in(SIGNAL_KINDS), f"one of {', '.join(SIGNAL_KINDS)}")
        yield from rows("end", pl.col("end") <= pl.col("start"), "an end after the start")


def _check_references(tables: dict[str, pl.DataFrame]) -> Iterator[Fault]:
    """Events that name users or items which are not there."""
    events = tables.get("events")
    if events is None:
        return
    if events.is_empty():
        yield Fault("events.parquet", "", None, "found no rows, expected at least one event")
    for column, owner in (("user_id", "users"), ("item_id", "items")):
        if owner in tables:
            known = tables[owner][column].drop_nulls().unique().implode()
            bad = pl.col(column).is_not_null() & ~pl.col(column).is_in(known)
            for row, value in events.with_row_index("row").filter(bad).select("row", column).iter_rows():
                message = f"found {value!r}, expected an id of {owner}.parquet"
                yield Fault("events.parquet", column, row, message)
