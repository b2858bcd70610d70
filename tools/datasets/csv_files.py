"""Any shop's CSV files, by a column mapping in YAML; `FORMAT.md` shows one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tools.dataset import (
    ACTIONS,
    EVENTS,
    ITEMS,
    SIGNALS,
    TABLES,
    USERS,
    DatasetInfo,
    Fault,
    TimeZone,
    check_tables,
    write_dataset,
)
from tools.errors import DatasetError

SHOWN_FAULTS = 20
OFFSET = r"[T ]\d\d:?\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
"""How an ISO 8601 time ends that has an offset from UTC."""


class TableMapping(BaseModel):
    """One CSV file: which of its columns is which of ours."""

    model_config = ConfigDict(extra="forbid")

    file: Path
    columns: dict[str, str | list[str]] = Field(description="our column: theirs; a list for the levels of a category")
    separator: str = ","
    category_separator: str = Field(">", description="between the levels, where the category is one column")
    timestamp_format: str | None = Field(
        None, description="strptime format; without one ISO 8601 is read; what has an offset is converted to time_zone"
    )
    action: str = Field("purchase", description="of all events, where no column says it")
    actions: dict[str, str] = Field(default_factory=dict, description="their word for an action: ours")


class CsvMapping(BaseModel):
    """The whole mapping file. Paths are relative to it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    locale: str = "en_US"
    time_zone: TimeZone = "UTC"
    region: str | None = None
    source: str
    licence: str
    items: TableMapping
    events: TableMapping
    users: TableMapping | None = Field(None, description="without one, the users of the events, without profiles")
    signals: TableMapping | None = None

    @model_validator(mode="after")
    def _columns_fit(self) -> CsvMapping:
        for name, schema in (("items", ITEMS), ("events", EVENTS), ("users", USERS), ("signals", SIGNALS)):
            table: TableMapping | None = getattr(self, name)
            if table and (unknown := sorted(table.columns.keys() - schema.keys())):
                raise ValueError(f"{name}.columns maps {unknown}; the format has {sorted(schema)}")
            for column, theirs in table.columns.items() if table else ():
                if not isinstance(theirs, str) and schema[column] != pl.List(pl.String):
                    raise ValueError(f"{name}.columns maps {column} to {theirs}; expected one column, for it's no list")
        return self


def build(mapping_file: Path, directory: Path, progress: Callable[[str], None]) -> DatasetInfo:
    """Write the data set that a mapping file describes; nothing is written if any row has a fault.

    Raises:
        DatasetError: the mapping is faulty, a file or column is missing, or rows have faults (the first are named, with
            rows counted from 0, the header not counted).
    """
    mapping = _read_mapping(mapping_file)
    tables: dict[str, pl.DataFrame] = {}
    faults: list[Fault] = []
    for name in TABLES:
        table: TableMapping | None = getattr(mapping, name)
        if table:
            progress(f"reading {table.file}")
            tables[name], found = _read(mapping_file.parent, name, table, mapping.time_zone)
            faults += found
    if "users" not in tables:
        ids = tables["events"]["user_id"].drop_nulls().unique().sort()
        tables["users"] = pl.DataFrame({"user_id": ids}).with_columns(profile=pl.lit(None), region=pl.lit(None))
    tables.setdefault("signals", pl.DataFrame(schema=SIGNALS))
    faults += check_tables(tables)
    if faults:
        lines = "\n  ".join(str(fault) for fault in faults[:SHOWN_FAULTS])
        raise DatasetError(f"{len(faults)} faults, nothing was written; the first:\n  {lines}")
    info = DatasetInfo(
        name=mapping.name,
        locale=mapping.locale,
        time_zone=mapping.time_zone,
        region=mapping.region,
        source=mapping.source,
        licence=mapping.licence,
        counts={name: table.height for name, table in tables.items()},
    )
    write_dataset(directory, info, tables)
    return info


def _read_mapping(path: Path) -> CsvMapping:
    try:
        return CsvMapping.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DatasetError(f"mapping file {path}: {error}; tools/datasets/FORMAT.md shows one") from error


def _read(base: Path, name: str, mapping: TableMapping, time_zone: str) -> tuple[pl.DataFrame, list[Fault]]:
    """One file as our table; a value that does not parse is a fault and becomes null."""
    path = base / mapping.file
    try:
        raw = pl.read_csv(path, separator=mapping.separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatasetError(f"{path} could not be read as CSV: {error}") from error
    wanted = {theirs for value in mapping.columns.values() for theirs in ([value] if isinstance(value, str) else value)}
    if missing := sorted(wanted - set(raw.columns)):
        raise DatasetError(f"{path} lacks the columns {missing}; it has {raw.columns}")
    columns: dict[str, pl.Series] = {}
    faults: list[Fault] = []
    for column, dtype in TABLES[name].items():
        theirs = mapping.columns.get(column)
        if theirs is None:
            columns[column] = pl.repeat(None, raw.height, dtype=dtype, eager=True)
            continue
        source = raw[theirs] if isinstance(theirs, str) else raw[theirs[-1]]
        if dtype == pl.Datetime("us"):
            parsed = _times(source.str.strip_chars(), mapping.timestamp_format, time_zone).alias(column)
        else:
            parsed = raw.select(_parse(theirs, dtype, mapping).alias(column))[column]
        bad = raw.select(row=pl.int_range(pl.len())).filter(parsed.is_null() & source.is_not_null())["row"]
        faults += [Fault(path.name, column, row, f"found {source[row]!r}, expected {_words(dtype)}") for row in bad]
        columns[column] = parsed
    table = pl.DataFrame(columns)
    if name == "events":
        action = pl.col("action").replace(mapping.actions) if "action" in mapping.columns else pl.lit(mapping.action)
        table = table.with_columns(action=action)
        if mapping.action not in ACTIONS:
            raise DatasetError(f"events.action is {mapping.action!r}; expected one of {', '.join(ACTIONS)}")
    return table, faults


def _parse(theirs: str | list[str], dtype: object, mapping: TableMapping) -> pl.Expr:
    if isinstance(theirs, list):
        return pl.concat_list([pl.col(column).str.strip_chars() for column in theirs]).list.drop_nulls()
    column = pl.col(theirs)
    if dtype == pl.List(pl.String):
        return column.str.split(mapping.category_separator).list.eval(pl.element().str.strip_chars())
    if dtype == pl.Float64:
        return column.str.strip_chars().cast(pl.Float64, strict=False)
    return column


def _times(text: pl.Series, timestamp_format: str | None, time_zone: str) -> pl.Series:
    """Times in `time_zone`: what has an offset is converted to it, what has none is taken as of it."""
    if timestamp_format:
        times = text.str.to_datetime(timestamp_format, time_unit="us", strict=False, ambiguous="earliest")
        zoned = isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone
        return times.dt.convert_time_zone(time_zone).dt.replace_time_zone(None) if zoned else times
    column = pl.col(text.name)
    has_offset = column.str.contains(OFFSET)
    # Each kind apart: without a format, one value decides how a whole column is read.
    local = pl.when(~has_offset).then(column).str.to_datetime(time_unit="us", strict=False)
    zoned_times = pl.when(has_offset).then(column).str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    converted = zoned_times.dt.convert_time_zone(time_zone).dt.replace_time_zone(None)
    return text.to_frame().select(pl.coalesce(local, converted)).to_series()


def _words(dtype: object) -> str:
    return {pl.Float64: "a number", pl.Datetime("us"): "a time such as 2017-11-17 09:30:00"}.get(dtype, "a text")
