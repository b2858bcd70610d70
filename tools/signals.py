"""The environment E at the moment of a request: season, holidays, trends, promotions, weather.

Section 1 of the report. Everything here holds at `as_of` and was known before it: trends count only
events before the request, and a row of `signals.parquet` counts from its start to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Protocol

import holidays
import httpx
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from tools.dataset import Dataset, SignalKind
from tools.errors import DatasetError, ServerError
from tools.loading import load_once

HOLIDAY_HORIZON_DAYS = 21
TREND_DAYS = 7
TREND_BASE_DAYS = 28
TREND_LEAST_BASE_DAYS = 14
"""With less history before the week nothing can be said to rise."""
TREND_MIN_COUNT = 20
TREND_MIN_LIFT = 1.25
TREND_COUNT = 5
ANNOUNCED_COUNT = 6

SOUTHERN = frozenset(
    ("AR", "AU", "BO", "BR", "BW", "CL", "FJ", "LS", "MG", "MU", "MZ", "NA",
     "NZ", "PE", "PG", "PY", "SZ", "UY", "ZA", "ZM", "ZW")
)  # fmt: skip
"""Countries (ISO 3166) whose seasons are those of the southern hemisphere."""
SEASONS = ("winter", "spring", "summer", "autumn")


class Signal(BaseModel):
    """One thing that holds at the moment of the request."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="s1, s2, ...")
    kind: SignalKind | str = Field(description="season, or a kind of signals.parquet")
    text: str
    categories: list[str] = Field(description="leaf categories that it is about; may be empty")


class WeatherProvider(Protocol):
    """Where the weather of a place and day comes from."""

    def weather(self, region: str, day: date) -> str | None:
        """The weather in words, or None where nothing is known. May block; called in a thread."""


class FileWeather:
    """Weather from a CSV or Parquet file with the columns region, date, text; a region is text, also `01`."""

    def __init__(self, path: Path) -> None:
        """Read the file whole."""
        try:
            if path.suffix == ".parquet":
                table = pl.read_parquet(path)
            else:
                table = pl.read_csv(path, schema_overrides={"region": pl.String}, try_parse_dates=True)
            table = table.select(pl.col("region").cast(pl.String), pl.col("date").cast(pl.Date), "text")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DatasetError(
                f"weather file {path}: {error}; expected CSV or Parquet with the columns region, date, text"
            ) from error
        self._text = {(region, day): text for region, day, text in table.iter_rows()}

    def weather(self, region: str, day: date) -> str | None:
        """See `WeatherProvider`."""
        return self._text.get((region, day))


class HTTPWeather:
    """Weather from a service that answers `GET url?region=...&date=...` with `{"text": ...}` or 404."""

    def __init__(self, url: str) -> None:
        """Keep the address; nothing is asked before the first request."""
        self._url = url

    def weather(self, region: str, day: date) -> str | None:
        """See `WeatherProvider`."""
        try:
            answer = httpx.get(self._url, params={"region": region, "date": day.isoformat()}, timeout=5)
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            return str(answer.raise_for_status().json()["text"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ServerError(
                f'weather service {self._url}: {error!r}; expected JSON such as {{"text": "rain, 8 to 11 degrees"}}'
            ) from error


@load_once(maxsize=4)
def weather_provider(source: str) -> WeatherProvider:
    """The provider of a setting: a web address, or the path of a file."""
    return HTTPWeather(source) if source.startswith(("http://", "https://")) else FileWeather(Path(source))


def read_signals(dataset: Dataset, user_id: str, as_of: datetime, weather: str | None = None) -> list[Signal]:
    """All signals that hold for a user at `as_of`: season, holidays, weather, trends, announced ones.

    Weather needs a place (of the user or of the data set) and a source; without one nothing is said of it.
    """
    region = dataset.user(user_id)[1]
    day = as_of.date()
    signals = [season(day, dataset.info.country), *upcoming_holidays(day, dataset.info.country)]
    if weather and region and (text := weather_provider(weather).weather(region, day)):
        signals.append(Signal(id="", kind="weather", text=f"Weather in {region}: {text}", categories=[]))
    signals += trends(dataset, datetime.combine(day, datetime.min.time()))
    signals += announced(dataset, user_id, region, as_of)
    return [signal.model_copy(update={"id": f"s{n}"}) for n, signal in enumerate(signals, 1)]


def bearing_on(signals: Sequence[Signal], leaf: str) -> list[Signal]:
    """The signals that say something of an item: what is about no category (season, holidays, weather), or its own."""
    return [signal for signal in signals if not signal.categories or leaf in signal.categories]


def season(day: date, country: str) -> Signal:
    """The meteorological season of a day, in its early, middle or late third."""
    index = (day.month % 12) // 3
    if country in SOUTHERN:
        index = (index + 2) % 4
    third = ("early", "mid", "late")[day.month % 3]
    return Signal(id="", kind="season", text=f"Season: {third} {SEASONS[index]}, {day:%B}", categories=[])


def upcoming_holidays(day: date, country: str) -> list[Signal]:
    """Holidays from today to `HOLIDAY_HORIZON_DAYS` ahead, public and unofficial, nearest first."""
    signals = []
    for when, name in holidays_between(day, day + timedelta(days=HOLIDAY_HORIZON_DAYS), country):
        days = (when - day).days
        ahead = "today" if days == 0 else "tomorrow" if days == 1 else f"in {days} days"
        signals.append(Signal(id="", kind="holiday", text=f"{name} {ahead}", categories=[]))
    return signals


@load_once(maxsize=1024)
def holidays_between(first: date, last: date, country: str) -> tuple[tuple[date, str], ...]:
    """The holidays of a country from a day to another one, in order; none of a country that is not known.

    A day may be several.
    """
    if country not in holidays.list_supported_countries(include_aliases=False):
        return ()
    known = holidays.country_holidays(country)
    calendar = holidays.country_holidays(
        country,
        years={first.year, last.year},
        observed=False,
        categories=tuple({"public", "unofficial"} & set(known.supported_categories)),
        language="en_US" if "en_US" in known.supported_languages else None,
    )
    days = [when for when in sorted(calendar) if first <= when <= last]
    return tuple((when, name) for when in days for name in calendar.get_list(when))


@load_once(maxsize=512)
def trends(dataset: Dataset, midnight: datetime) -> tuple[Signal, ...]:
    """Leaf categories whose last seven days rise most against the four weeks before.

    Counts purchases in `[midnight - 7 d, midnight)` against the daily mean of the 28 days before them. A rise
    needs `TREND_MIN_COUNT` events and a lift of `TREND_MIN_LIFT`; they are ordered by `(n - e) / sqrt(e)`, n the
    count, e the count expected, so that a small category's noise does not win.

    Args:
        dataset: the data set.
        midnight: start of the day of the request. Trends are of whole days: one computation serves a day.
    """
    start = midnight - timedelta(days=TREND_DAYS)
    base_start = max(start - timedelta(days=TREND_BASE_DAYS), dataset.first_event)
    base_days = (start - base_start).total_seconds() / 86_400
    if base_days < TREND_LEAST_BASE_DAYS:
        return ()
    recent = pl.col("timestamp") >= start
    expected = (~recent).sum() * TREND_DAYS / base_days
    rising = (
        dataset.events_before(midnight, since=base_start)
        .filter(pl.col("action") == "purchase")
        .join(dataset.items.select("item_id", leaf=pl.col("category").list.last()), "item_id")
        .group_by("leaf")
        .agg(count=recent.sum(), expected=pl.max_horizontal(expected, 1.0))
        .filter(pl.col("count") >= TREND_MIN_COUNT, pl.col("count") >= TREND_MIN_LIFT * pl.col("expected"))
        .with_columns(score=(pl.col("count") - pl.col("expected")) / pl.col("expected").sqrt())
        .sort("score", "leaf", descending=[True, False])
        .head(TREND_COUNT)
    )
    return tuple(
        Signal(
            id="",
            kind="trend",
            text=f"Rising this week: {leaf} ({count / base:.1f}x the weeks before)",
            categories=[leaf],
        )
        for leaf, count, base, _ in rising.iter_rows()
    )


def announced(dataset: Dataset, user_id: str, region: str | None, as_of: datetime) -> list[Signal]:
    """Rows of `signals.parquet` that hold at `as_of` for this user and place, those that end first first."""
    rows = dataset.signals.filter(
        pl.col("start") <= as_of,
        pl.col("end") > as_of,
        pl.col("region").is_null() | (pl.col("region") == pl.lit(region, dtype=pl.String)),
        pl.col("user_ids").is_null() | pl.col("user_ids").list.contains(user_id),
    ).sort("end", maintain_order=True)
    return [
        Signal(id="", kind=row["kind"], text=row["text"], categories=row["categories"] or [])
        for row in rows.head(ANNOUNCED_COUNT).iter_rows(named=True)
    ]
