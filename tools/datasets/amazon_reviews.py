"""Amazon Reviews 2023 (McAuley Lab): JSON lines of reviews and of item metadata, as published, plain or .gz.

A review stands for a purchase of its item. Reviews have no users beyond an id, no sessions and no search.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from tools.dataset import EVENTS, ITEMS, SIGNALS, USERS, DatasetInfo, write_dataset
from tools.errors import DatasetError

PROGRESS_EVERY = 200_000
DETAILS_KEPT = 8


def build(reviews: Path, metadata: Path, directory: Path, name: str, progress: Callable[[str], None]) -> DatasetInfo:
    """Write the data set of one category of Amazon Reviews 2023.

    Items without a title, and reviews of items that the metadata lacks, are left out and counted in `notes`.

    Raises:
        DatasetError: a file is missing, or a line is not what is expected (file and line are named).
    """
    rows = [_item(record, place) for record, place in _records(metadata, progress)]
    items = pl.DataFrame(rows, schema=ITEMS, orient="row")
    named = items.filter(pl.col("title").str.strip_chars() != "").unique("item_id", keep="first", maintain_order=True)
    everything = pl.DataFrame(
        [_event(record, place) for record, place in _records(reviews, progress)], schema=EVENTS, orient="row"
    )
    events = everything.join(named.select("item_id"), on="item_id", how="semi").sort("user_id", "timestamp")
    if events.is_empty():
        raise DatasetError(f"no review of {reviews} is of an item of {metadata}; are they of the same category?")
    users = events.select(pl.col("user_id").unique().sort()).with_columns(profile=pl.lit(None), region=pl.lit(None))
    info = DatasetInfo(
        name=name,
        locale="en_US",
        time_zone="UTC",
        region=None,
        source="Amazon Reviews 2023, McAuley Lab, UC San Diego (Hou et al., 2024)",
        licence="as published by the McAuley Lab; see its page",
        counts={"items": named.height, "users": users.height, "events": events.height},
        notes=f"Left out: {items.height - named.height} items without a title or listed twice, "
        f"{everything.height - events.height} reviews of items without metadata. A review stands for a purchase.",
    )
    tables = {"items": named, "users": users.cast(USERS), "events": events, "signals": pl.DataFrame(schema=SIGNALS)}
    write_dataset(directory, info, tables)
    return info


def _records(path: Path, progress: Callable[[str], None]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each line's object with its place, `FILE line N` (from 1)."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path} line {number}"
                if number % PROGRESS_EVERY == 0:
                    progress(f"{path.name}: {number:,} lines")
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DatasetError(f"{place} is not JSON ({error}); expected one object a line") from error
                if not isinstance(record, dict):
                    raise DatasetError(f"{place}: found {type(record).__name__}, expected an object")
                yield record, place
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path} could not be read: {error}") from error


def _item(record: dict[str, Any], place: str) -> tuple[Any, ...]:
    levels = [level for level in record.get("categories") or [] if isinstance(level, str) and level.strip()]
    details = record.get("details")
    kept = dict(list(details.items())[:DETAILS_KEPT]) if isinstance(details, dict) else {}
    return (
        str(_value(record, "parent_asin", place)),
        str(record.get("title") or ""),
        levels or [str(record.get("main_category") or "Unknown")],
        record.get("store"),
        _price(record.get("price")),
        json.dumps(kept, ensure_ascii=False) if kept else None,
        None,
    )


def _event(record: dict[str, Any], place: str) -> tuple[Any, ...]:
    milliseconds = _value(record, "timestamp", place)
    if not isinstance(milliseconds, int):
        raise DatasetError(f"{place}, field timestamp: found {milliseconds!r}, expected milliseconds since 1970")
    time = datetime.fromtimestamp(milliseconds / 1000, UTC).replace(tzinfo=None)
    user, item = str(_value(record, "user_id", place)), str(_value(record, "parent_asin", place))
    return (user, time, "purchase", item, None, None, 1.0, None)


def _value(record: dict[str, Any], field: str, place: str) -> Any:  # noqa: ANN401 (JSON)
    if record.get(field) in (None, ""):
        raise DatasetError(f"{place} has no field {field!r} (found: {', '.join(record)})")
    return record[field]


def _price(value: object) -> float | None:
    try:
        return float(str(value).replace("$", "").replace(",", ""))
    except ValueError:
        return None
