"""`recgpt data`: build, import, check and index data sets."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from prompts.template import clean
from recgpt.console import complain, reporting, say
from tools.adaptor import ADAPTOR
from tools.dataset import DatasetInfo, check_dataset, open_dataset
from tools.datasets import amazon_reviews, completejourney, csv_files
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.entities import EntitySource, open_entities
from tools.errors import DatasetError
from tools.models import DEFAULT_MODEL
from tools.retrieval import embed_catalog, open_index

SHOWN_FAULTS = 50
BUILDERS = {"completejourney": completejourney.build}


def _done(directory: Path, info: DatasetInfo) -> None:
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in info.counts.items())
    say(f"{directory}: {counts}")


def build(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(BUILDERS)}")],
    out: Annotated[Path | None, typer.Option(help="directory, default data/NAME")] = None,
) -> None:
    """Build a data set from an installed package."""
    if name not in BUILDERS:
        raise DatasetError(f"there is no builder {name!r}; take one of {', '.join(BUILDERS)}, or `recgpt data import`")
    directory = out or Path("data") / name
    _done(directory, BUILDERS[name](directory, say))


def check(directory: Annotated[Path, typer.Argument(help="data set directory")]) -> None:
    """Validate a data set directory; names file, column and row (from 0) of each fault."""
    faults = check_dataset(directory)
    for fault in faults[:SHOWN_FAULTS]:
        complain("fault", str(fault))
    if faults:
        more = f" ({len(faults) - SHOWN_FAULTS} not shown)" if len(faults) > SHOWN_FAULTS else ""
        raise DatasetError(f"{directory}: {len(faults)} faults{more}")
    say(f"{directory}: no faults")


def index(
    directory: Annotated[Path, typer.Argument(help="data set directory")],
    embedding_model: Annotated[str, typer.Option(help="model, directory or /v1 address")] = PACKAGED_MODEL,
) -> None:
    """Embed titles and categories now instead of at the first request."""
    dataset, embedder = open_dataset(directory), open_embedder(embedding_model)
    with reporting("embedding") as report_step:
        embed_catalog(dataset, embedder, report_step)
    catalog = open_index(dataset, embedder)
    say(f"{directory}: index of {len(catalog.titles):,} titles and {len(catalog.leaves):,} leaf categories")


def entities(
    directory: Annotated[Path, typer.Argument(help="data set directory")],
    adaptor: Annotated[Path, typer.Option(help="trained adaptor")] = ADAPTOR,
    model: Annotated[str, typer.Option(help="the LLM that it is for")] = DEFAULT_MODEL,
    embedding_model: Annotated[str, typer.Option(help="model, directory or /v1 address")] = PACKAGED_MODEL,
) -> None:
    """Embed and project every item and query now instead of at the first request; what is there already stays."""
    dataset = open_dataset(directory)
    queries = dataset.events_before(datetime.max)["query"].drop_nulls()
    texts = sorted({clean(text) for text in (*dataset.items["title"], *queries)} - {""})
    with reporting("entities") as report_step:
        table = open_entities(EntitySource(directory / "index", adaptor, embedding_model, model))
        table.add(texts, lambda done, total: report_step(f"entities: {done:,} of {total:,}"))
    say(f"{directory}: table of {len(table):,} entities, {table.version.tokens} input embeddings each")


def import_csv(
    mapping: Annotated[
        Path, typer.Argument(help="YAML file that maps your files' columns; see tools/datasets/FORMAT.md")
    ],
    out: Annotated[Path, typer.Option(help="data set directory to write")],
) -> None:
    """Import CSV files by a column mapping."""
    _done(out, csv_files.build(mapping, out, say))


def import_amazon_reviews(
    reviews: Annotated[Path, typer.Option(help="reviews, JSON lines, may be .gz")],
    metadata: Annotated[Path, typer.Option(help="item metadata, JSON lines, may be .gz")],
    out: Annotated[Path, typer.Option(help="data set directory to write")],
    name: Annotated[str, typer.Option(help="name of the data set")] = "amazon-reviews",
) -> None:
    """Import Amazon Reviews 2023 (JSON lines of reviews and item metadata)."""
    _done(out, amazon_reviews.build(reviews, metadata, out, name, say))
