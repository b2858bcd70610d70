import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tools.dataset import check_dataset, open_dataset
from tools.datasets import amazon_reviews, csv_files
from tools.errors import DatasetError

MAPPING = """
name: corner-shop
locale: en_GB
source: test
licence: none
items:
  file: products.csv
  columns: {item_id: sku, title: name, category: [aisle, shelf], price: price}
events:
  file: orders.csv
  columns: {user_id: customer, timestamp: at, item_id: sku, session_id: order, action: what}
  timestamp_format: "%d/%m/%Y %H:%M"
  actions: {bought: purchase, looked: click}
"""
PRODUCTS = "sku,name,aisle,shelf,price\n1,Tea,Drinks,Black Tea,2.5\n2,Milk,Dairy,Whole Milk,1.1\n"
ORDERS = "customer,order,at,sku,what\nann,a1,01/05/2026 09:00,1,bought\nann,a1,01/05/2026 09:00,2,looked\n"


def say(message: str) -> None:
    """Progress that nobody reads."""


def write(directory: Path, **files: str) -> Path:
    for name, text in {"mapping.yaml": MAPPING, "products.csv": PRODUCTS, "orders.csv": ORDERS, **files}.items():
        (directory / name.replace("_csv", ".csv").replace("_yaml", ".yaml")).write_text(text)
    return directory / "mapping.yaml"


def test_csv_files_become_a_data_set(tmp_path: Path) -> None:
    csv_files.build(write(tmp_path), tmp_path / "out", say)
    assert check_dataset(tmp_path / "out") == []
    dataset = open_dataset(tmp_path / "out")
    assert dataset.items["category"].to_list() == [["Drinks", "Black Tea"], ["Dairy", "Whole Milk"]]
    events = dataset.events_before(dataset.last_event.replace(year=2027))
    assert events["action"].to_list() == ["purchase", "click"]
    assert str(events["timestamp"][0]) == "2026-05-01 09:00:00"


def test_times_with_an_offset_are_converted_to_the_zone_of_the_data_set(tmp_path: Path) -> None:
    iso = MAPPING.replace("locale:", "time_zone: Europe/Berlin\nlocale:").replace(
        '  timestamp_format: "%d/%m/%Y %H:%M"\n', ""
    )
    times = ["2026-05-01T07:00:00Z", "2026-05-01 10:30:00+02:00", "2026-05-01 11:00:00", "2026-12-01T11:00:00.5+0000"]
    orders = "customer,order,at,sku,what\n" + "".join(f"ann,a1,{time},1,bought\n" for time in times)
    csv_files.build(write(tmp_path, mapping_yaml=iso, orders_csv=orders), tmp_path / "iso", say)
    found = pl.read_parquet(tmp_path / "iso" / "events.parquet")["timestamp"]
    assert [f"{time:%m-%d %H:%M}" for time in found] == ["05-01 09:00", "05-01 10:30", "05-01 11:00", "12-01 12:00"]
    zoned = MAPPING.replace("locale:", "time_zone: Europe/Berlin\nlocale:").replace("%H:%M", "%H:%M %z")
    orders = "customer,order,at,sku,what\nann,a1,01/05/2026 09:00 +0000,1,bought\n"
    csv_files.build(write(tmp_path, mapping_yaml=zoned, orders_csv=orders), tmp_path / "zoned", say)
    assert str(pl.read_parquet(tmp_path / "zoned" / "events.parquet")["timestamp"][0]) == "2026-05-01 11:00:00"


@pytest.mark.parametrize("first", ["", "2026-05-01T07:00:00Z"])
def test_iso_times_that_are_none_are_faults(tmp_path: Path, first: str) -> None:
    iso = MAPPING.replace('  timestamp_format: "%d/%m/%Y %H:%M"\n', "")
    rows = [f"ann,a1,{time},1,bought\n" for time in (first, "2026-13-01T00:00:00Z", "now")]
    orders = "".join(["customer,order,at,sku,what\n", *rows])
    with pytest.raises(
        DatasetError, match=r"(?s)row 1: found '2026-13-01T00:00:00Z'.*row 2: found 'now', expected a time"
    ):
        csv_files.build(write(tmp_path, mapping_yaml=iso, orders_csv=orders), tmp_path / "out", say)


def test_csv_category_in_one_column(tmp_path: Path) -> None:
    mapping = MAPPING.replace("category: [aisle, shelf]", "category: path")
    products = "sku,name,path,price\n1,Tea,Drinks > Black Tea,2.5\n2,Milk,Dairy,\n"
    csv_files.build(write(tmp_path, mapping_yaml=mapping, products_csv=products), tmp_path / "out", say)
    assert open_dataset(tmp_path / "out").items["category"].to_list() == [["Drinks", "Black Tea"], ["Dairy"]]


def test_csv_faults_name_file_column_and_row_and_nothing_is_written(tmp_path: Path) -> None:
    products = PRODUCTS + "3,,Dairy,Cream,cheap\n"
    orders = ORDERS + "bob,b1,yesterday,9,stole\n"
    with pytest.raises(DatasetError) as caught:
        csv_files.build(write(tmp_path, products_csv=products, orders_csv=orders), tmp_path / "out", say)
    text = str(caught.value)
    for fault in (
        "products.csv, column price, row 2: found 'cheap', expected a number",
        "items.parquet, column title, row 2: found None",
        "orders.csv, column timestamp, row 2: found 'yesterday', expected a time",
        "events.parquet, column action, row 2: found 'stole'",
        "events.parquet, column item_id, row 2: found '9', expected an id of items.parquet",
    ):
        assert fault in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (MAPPING.replace("sku, title: name", "sku, title: label"), r"lacks the columns \['label'\]; it has"),
        (MAPPING.replace("price: price", "cost: price"), r"maps \['cost'\]; the format has"),
        (
            MAPPING.replace("title: name", "title: [name, sku]"),
            r"items.columns maps title to \['name', 'sku'\]; expected one",
        ),
        (MAPPING.replace("locale:", "time_zone: Berlin\nlocale:"), "'Berlin' is no IANA time zone"),
        (MAPPING.replace("products.csv", "nowhere.csv"), "could not be read as CSV"),
        ("items: [", "FORMAT.md shows one"),
    ],
)
def test_csv_mapping_errors(tmp_path: Path, mapping: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        csv_files.build(write(tmp_path, mapping_yaml=mapping), tmp_path / "out", say)


META = [
    {"parent_asin": "B1", "title": "Steel Bottle", "main_category": "Sports", "categories": ["Sports", "Bottles"],
     "store": "Acme", "price": "$12.50", "details": {"Color": "blue"}},
    {"parent_asin": "B2", "title": "", "main_category": "Sports", "categories": [], "price": None},
    {"parent_asin": "B3", "title": "Rope", "main_category": "Sports", "categories": [], "price": "None"},
]  # fmt: skip
REVIEWS = [
    {"user_id": "U1", "parent_asin": "B1", "asin": "B1x", "timestamp": 1494000000000, "rating": 5.0},
    {"user_id": "U1", "parent_asin": "B2", "timestamp": 1494000001000, "rating": 1.0},
    {"user_id": "U2", "parent_asin": "B3", "timestamp": 1494000002000, "rating": 4.0},
]


def test_amazon_reviews_become_a_data_set(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "meta.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in META)
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REVIEWS))
    info = amazon_reviews.build(tmp_path / "reviews.jsonl", tmp_path / "meta.jsonl.gz", tmp_path / "out", "sports", say)
    assert check_dataset(tmp_path / "out") == []
    assert info.counts == {"items": 2, "users": 2, "events": 2}
    assert "1 items without a title" in info.notes
    items = pl.read_parquet(tmp_path / "out" / "items.parquet").to_dicts()
    assert items[0]["category"] == ["Sports", "Bottles"]
    assert (items[0]["price"], items[0]["brand"], items[0]["attributes"]) == (12.5, "Acme", '{"Color": "blue"}')
    assert (items[1]["category"], items[1]["price"]) == (["Sports"], None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 1 is not JSON"),
        ('["a"]', "line 1: found list, expected an object"),
        ('{"user_id": "U1"}', "line 1 has no field 'timestamp'"),
        ('{"user_id": "U1", "timestamp": "May", "parent_asin": "B1"}', "expected milliseconds since 1970"),
    ],
)
def test_amazon_reviews_name_file_and_line_of_a_fault(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in META))
    (tmp_path / "reviews.jsonl").write_text(line + "\n")
    with pytest.raises(DatasetError, match=message):
        amazon_reviews.build(tmp_path / "reviews.jsonl", tmp_path / "meta.jsonl", tmp_path / "out", "sports", say)
