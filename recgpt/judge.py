"""`recgpt judge`: judged texts to tune the judge on and to measure it by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.panel import Panel
from rich.prompt import Prompt
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agents.judging import fact_lines
from eval.human import IMPORTERS, VALUES, Rating, read_ratings
from eval.judged import JudgedText, Split, read_judged
from prompts.rubric import Label, Rubric, load_rubrics
from recgpt.console import console, reporting, say
from recgpt.output import cut_to_whole_lines, open_output
from tools.dataset import open_dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import SettingError
from tools.models import sha256
from tools.retrieval import open_index
from training.data import training_view
from training.judge import write_judge_examples
from training.judged import make_judged

TEXTS = Path("runs/judge/texts.jsonl")


def data(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    embedding_model: Annotated[str, typer.Option(help="of tags and leaf names")] = PACKAGED_MODEL,
    out: Annotated[Path, typer.Option(help="directory to write")] = TEXTS.parent,
    households: Annotated[int, typer.Option(min=5, help="seven tenths train, one validates, two test")] = 400,
    most: Annotated[int, typer.Option(min=1, help="examples an agent, dimension and label")] = 160,
    seed: Annotated[int, typer.Option(help="of all choices")] = 7,
) -> None:
    """Build texts whose labels are known from what households really bought, and the judge's training examples."""
    whole = open_dataset(dataset)
    index = open_index(whole, open_embedder(embedding_model))
    counts: dict[Split, int] = {
        "train": households * 7 // 10,
        "validation": households // 10,
        "test": households // 5,
    }
    texts = out / TEXTS.name
    texts.unlink(missing_ok=True)
    with reporting("judged texts") as step, open_output(texts) as write:
        for text in make_judged(training_view(whole), index, counts, seed, step):
            write(text)
    made = read_judged(texts)
    card = write_judge_examples(made, out, most, seed, sha256(texts))
    say(f"{texts}: {len(made):,} texts; {out / 'examples.parquet'}: {card['examples']}")


def import_labels(
    source: Annotated[str, typer.Argument(help=f"one of {', '.join(IMPORTERS)}")],
    directory: Annotated[Path, typer.Argument(help="where its files are")],
    out: Annotated[Path, typer.Option(help="directory to write")] = Path("runs/judge/human"),
) -> None:
    """Take over public ratings by people: texts and ratings as two files of JSON lines."""
    if source not in IMPORTERS:
        raise SettingError(f"there is no source {source!r}; take one of {', '.join(IMPORTERS)}")
    texts, ratings = IMPORTERS[source](directory)
    for name, lines in (("texts", texts), ("labels", ratings)):
        path = out / source / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        with open_output(path) as write:
            for line in lines:
                write(line)
    say(f"{out / source}: {len(texts):,} texts, {len(ratings):,} ratings")


def label(
    annotator: Annotated[str, typer.Option(help="who labels")],
    texts: Annotated[Path, typer.Option(help="what to label, see `recgpt judge data`")] = TEXTS,
    out: Annotated[Path, typer.Option(help="JSON lines; goes on with what this annotator has done")] = Path(
        "runs/judge/labels.jsonl"
    ),
    dimension: Annotated[list[str] | None, typer.Option(help="label these alone")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
) -> None:
    """Label texts by hand, a dimension at a time; several people may label the same ones."""
    if split not in get_args(Split):
        raise SettingError(f"there is no split {split!r}; take one of {', '.join(get_args(Split))}")
    found = [text for text in read_judged(texts) if text.split == split]
    cut_to_whole_lines(out)
    ratings = read_ratings(out, {text.id for text in found}) if out.exists() else []
    done = {(rating.text_id, rating.dimension) for rating in ratings if rating.annotator == annotator}
    todo = [
        (text, rubric)
        for text in found
        for rubric in load_rubrics(text.task.kind)
        if not rubric.check and rubric.dimension in (dimension or [rubric.dimension])
        if (text.id, rubric.dimension) not in done
    ]
    keys: dict[str, Label] = {"p": "positive", "n": "neutral", "b": "negative"}
    with open_output(out) as write:
        for number, (text, rubric) in enumerate(todo, 1):
            show_text(text, rubric, f"{len(done) + number} of {len(done) + len(todo)}")
            key = Prompt.ask("p positive, n neutral, b bad (negative), s skip, q quit", choices=[*keys, "s", "q"])
            if key == "q":
                break
            if key in keys:
                value = VALUES[keys[key]]
                write(Rating(text_id=text.id, dimension=rubric.dimension, annotator=annotator, value=value))
    say(f"labels of {annotator}: {out}; the same command goes on")


def show_text(text: JudgedText, rubric: Rubric, progress: str) -> None:
    """One page of the terminal: facts, text and what the labels mean. No label or source of the text is shown."""
    console.clear()
    facts = Table("id", "of", "fact", box=None)
    for line in fact_lines([fact for fact in text.task.facts if fact.name in rubric.facts]):
        facts.add_row(line["id"], line["name"], Text(line["text"]))
    scale = Text("\n".join(f"{name}: {meaning}" for name, meaning in rubric.scale.model_dump().items()))
    console.print(Rule(f"{rubric.dimension}, {progress}"), Text(rubric.definition), facts)
    console.print(Panel(Text(text.task.subject), title="text to judge"), scale)
