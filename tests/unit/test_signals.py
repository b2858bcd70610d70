import json
import threading
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import AS_OF, write_small_dataset
from tools.dataset import Dataset, open_dataset
from tools.errors import DatasetError, ServerError
from tools.signals import (
    Signal,
    announced,
    bearing_on,
    read_signals,
    season,
    trends,
    upcoming_holidays,
    weather_provider,
)


@pytest.mark.parametrize(
    ("day", "country", "text"),
    [
        (date(2017, 12, 1), "US", "Season: early winter, December"),
        (date(2017, 1, 15), "US", "Season: mid winter, January"),
        (date(2017, 11, 17), "US", "Season: late autumn, November"),
        (date(2017, 11, 17), "AU", "Season: late spring, November"),
    ],
)
def test_season(day: date, country: str, text: str) -> None:
    assert season(day, country).text == text


def test_holidays_ahead_are_counted_in_days() -> None:
    assert [s.text for s in upcoming_holidays(date(2017, 11, 17), "US")] == ["Thanksgiving Day in 6 days"]
    assert upcoming_holidays(date(2017, 11, 23), "US")[0].text == "Thanksgiving Day today"
    assert "Halloween" in upcoming_holidays(date(2017, 10, 30), "US")[0].text
    assert upcoming_holidays(date(2017, 11, 17), "XX") == []
    assert [s.text for s in upcoming_holidays(date(2023, 4, 22), "TR")][1:3] == [
        "Eid al-Fitr tomorrow",
        "National Sovereignty and Children's Day tomorrow",
    ]


def test_trends_rise_against_the_weeks_before_and_never_look_ahead(tmp_path: Path) -> None:
    before = [("h2", AS_OF - timedelta(days=2, minutes=n), "pumpkin") for n in range(30)]
    after = [("h2", AS_OF + timedelta(minutes=n), "turkey") for n in range(300)]
    same_day = [("h2", AS_OF - timedelta(minutes=n), "soap") for n in range(300)]
    dataset = open_dataset(write_small_dataset(tmp_path / "d", before + after + same_day))
    rising = trends(dataset, datetime(2017, 11, 17))
    assert [s.categories for s in rising] == [["Canned Pumpkin"]]
    assert rising[0].text.startswith("Rising this week: Canned Pumpkin (30.0x the weeks before)")


def test_constant_sales_do_not_rise_and_a_young_data_set_has_no_trends(tmp_path: Path) -> None:
    daily = [("h2", datetime(2017, 9, 1) + timedelta(hours=4 * n), "milk") for n in range(6 * 60)]
    dataset = open_dataset(write_small_dataset(tmp_path / "d", daily))
    for day in (10, 20, 22, 30, 45, 58):
        assert trends(dataset, datetime(2017, 9, 1) + timedelta(days=day)) == ()


def test_announced_signals_hold_now_for_this_user_and_place(small: Dataset) -> None:
    assert [s.text for s in announced(small, "h1", "Tianjin", AS_OF)] == ["Mailer: turkeys", "Local fair"]
    assert announced(small, "h2", None, AS_OF) == []
    assert [s.text for s in announced(small, "h2", None, datetime(2017, 12, 2))] == ["Future sale"]
    assert announced(small, "h1", "Tianjin", datetime(2017, 11, 20)) == []  # the end is not included


def test_weather_is_said_only_where_there_is_a_place_and_a_source(small: Dataset, tmp_path: Path) -> None:
    source = tmp_path / "weather.csv"
    source.write_text("region,date,text\nTianjin,2017-11-17,frost at night\n")
    of = lambda user, weather: [s.text for s in read_signals(small, user, AS_OF, weather) if s.kind == "weather"]  # noqa: E731
    assert of("h1", str(source)) == ["Weather in Tianjin: frost at night"]
    assert of("h2", str(source)) == []
    assert of("h1", None) == []
    (tmp_path / "bad.csv").write_text("place,when\n")
    with pytest.raises(DatasetError, match="expected CSV or Parquet with the columns region, date, text"):
        weather_provider(str(tmp_path / "bad.csv"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_region_that_is_a_number_is_text(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"weather.{kind}"
    if kind == "csv":
        source.write_text("region,date,text\n01,2017-11-17,frost\n10,2017-11-17,rain\n")
    else:
        pl.DataFrame({"region": [10], "date": [date(2017, 11, 17)], "text": ["rain"]}).write_parquet(source)
    provider = weather_provider(str(source))
    assert provider.weather("10", date(2017, 11, 17)) == "rain"
    assert provider.weather("01", date(2017, 11, 17)) == ("frost" if kind == "csv" else None)
    assert provider.weather("1", date(2017, 11, 17)) is None


@pytest.fixture
def weather_service() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            found = "region=Tianjin&date=2017-11-17" in self.path
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"text": "snow"}).encode() if found else b"{}")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/weather"
    server.shutdown()
    server.server_close()


def test_weather_over_http(weather_service: str) -> None:
    provider = weather_provider(weather_service)
    assert provider.weather("Tianjin", date(2017, 11, 17)) == "snow"
    assert provider.weather("Tianjin", date(2017, 11, 18)) is None
    with pytest.raises(ServerError, match="weather service"):
        weather_provider("http://127.0.0.1:9/x").weather("Tianjin", date(2017, 11, 17))


def test_every_signal_has_an_id_and_ids_follow_the_order(small: Dataset) -> None:
    signals = read_signals(small, "h1", AS_OF)
    assert [s.id for s in signals] == [f"s{n}" for n in range(1, len(signals) + 1)]
    assert [s.kind for s in signals] == ["season", "holiday", "promotion", "promotion"]


def test_what_is_about_a_category_bears_on_its_items_only() -> None:
    about = {"s1": [], "s2": ["White Milk"], "s3": ["White Bread", "Rye Bread"]}
    signals = [Signal(id=key, kind="trend", text=key, categories=leaves) for key, leaves in about.items()]
    assert [signal.id for signal in bearing_on(signals, "White Milk")] == ["s1", "s2"]
    assert [signal.id for signal in bearing_on(signals, "Rye Bread")] == ["s1", "s3"]
