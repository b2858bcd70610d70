"""The page of an offline evaluation: plots and tables of its figures, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from eval.metrics import Estimate
from eval.page import BLUE, GREEN, Table, draw_bars, list_of, svg_of, write_page
from eval.splits import WEEKS

MODELS = (
    "popularity",
    "popularity_28d",
    "own_frequency",
    "own_recency",
    "item_knn",
    "ease",
    "tifu_knn",
    "sasrec",
    "towers",
    "utility",
    "v1",
    "shelf",
    "v2_cognitive",
    "v1_combined",
    "v2_combined",
)
COLOURS = {"v1": BLUE, "v2_cognitive": BLUE, "v2_combined": GREEN}
COLUMNS = (
    ("leaf", "all", 10),
    ("leaf", "all", 30),
    ("leaf", "new", 30),
    ("category", "all", 10),
    ("category", "all", 30),
    ("category", "new", 30),
    ("product", "all", 10),
    ("product", "all", 30),
)
"""Of the tables: level, which targets, k."""
OTHERS = ("tags.", "cost.", "routes.", "lists.", "page.", "allocation.", "weeks_everyone.")
"""What begins the keys of figures that are listed, not plotted."""

Tokens = Mapping[str, Mapping[str, tuple[float, float]]]
"""Prompt and completion tokens a household, by system and agent."""


def write_evaluation_page(path: Path, values: Mapping[str, Estimate], tokens: Tokens) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        values: figures by their key in `metrics.json`.
        tokens: what V1 and V2 cost.
    """
    columns = [f"{level} {kind} @{k}" for level, kind, k in COLUMNS]
    compared, everyone = table(values, "models"), table(values, "everyone")
    gains = {
        name: [values.get(f"gain.{name}.leaf.{kind}.hr@30") for kind in ("all", "new")]
        for name in MODELS
        if f"gain.{name}.leaf.all.hr@30" in values
    }
    write_page(
        path,
        "Offline evaluation",
        "HR@k: share of a household's next basket among the first k of a list; new counts what it never bought, with "
        "what it bought taken off the list. Means over households with 95 % bootstrap intervals.",
        {
            "HR@30 of leaf categories, by model": hit_rate_plot(values),
            "HR@30 of new leaves in the weeks of a season": week_plot(values),
            "Tokens a household until its tags are there": token_plot(tokens),
            "What each channel alone finds, and how far two list the same": channel_plot(values),
        },
        [
            Table(f"All models on the same {households(compared):,} households", "model", columns, compared),
            Table(
                "What both channels together gain over each model, household by household (HR@30, leaves)",
                "over",
                ["all", "new"],
                gains,
            ),
            Table(
                f"The models that were asked about all {households(everyone):,} households", "model", columns, everyone
            ),
            list_of(
                "Final tags, cost (seconds as recorded, many households at a time), repetition, diversity, pages, "
                "allocation, and the weeks on all households that a model was asked about",
                {key: value for key, value in values.items() if key.startswith(OTHERS)},
            ),
        ],
    )


def table(values: Mapping[str, Estimate], prefix: str) -> dict[str, list[Estimate | None]]:
    """A row a model, a cell for each of `COLUMNS`."""
    rows = {
        name: [values.get(f"{prefix}.{name}.{level}.{kind}.hr@{k}") for level, kind, k in COLUMNS] for name in MODELS
    }
    return {name: row for name, row in rows.items() if any(row)}


def short_table(values: Mapping[str, Estimate]) -> str:
    """The models in Markdown: on how many households, and HR@30 with intervals at three levels."""
    columns = [("leaf", "all"), ("leaf", "new"), ("category", "all"), ("product", "all")]
    lines = [
        f"HR@30 before the last basket of {households(table(values, 'models'))} households, mean [95 % interval]:",
        "",
        "| HR@30 | " + " | ".join(f"{level}, {kind}" for level, kind in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in MODELS:
        found = [values.get(f"models.{name}.{level}.{kind}.hr@30") for level, kind in columns]
        if any(found):
            lines.append(f"| {name} | " + " | ".join(str(value) if value else "" for value in found) + " |")
    return "\n".join(lines)


def households(rows: Mapping[str, Sequence[Estimate | None]]) -> int:
    """How many households a table is about."""
    return max((value.n for row in rows.values() for value in row if value), default=0)


def hit_rate_plot(values: Mapping[str, Estimate]) -> str:
    """A panel for all and one for new leaves, a bar a model with its interval."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("all", "new"), strict=True):
        found = {name: value for name in MODELS if (value := values.get(f"models.{name}.leaf.{kind}.hr@30"))}
        draw_bars(axes, found, COLOURS)
        axes.set_title(f"{kind} leaves")
    return svg_of(figure)


def week_plot(values: Mapping[str, Estimate]) -> str:
    """A panel a week: all models on the same households, few, since V1 and V2 are asked about few."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    there = False
    for axes, week in zip(figure.subplots(1, len(WEEKS), sharey=True, sharex=True), WEEKS, strict=True):
        found = {name: value for name in MODELS if (value := values.get(f"weeks.{week}.{name}.leaf.new.hr@30"))}
        there = there or bool(found)
        draw_bars(axes, found, COLOURS)
        axes.set_title(f"{week}, {max((value.n for value in found.values()), default=0)} households")
    return svg_of(figure) if there else ""


def token_plot(tokens: Tokens) -> str:
    """A stacked bar a system: prompt and completion tokens of each agent."""
    if not any(tokens.values()):
        return ""
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.subplots()
    shades = mpl.colormaps["tab20"]
    parts = [(agent, part) for agent in dict.fromkeys(a for own in tokens.values() for a in own) for part in (0, 1)]
    for number, (agent, part) in enumerate(parts):
        widths = [own.get(agent, (0.0, 0.0))[part] for own in tokens.values()]
        before = [sum(own.get(other, (0.0, 0.0))[side] for other, side in parts[:number]) for own in tokens.values()]
        label = f"{agent}, {('prompts', 'answers')[part]}"
        axes.barh(list(tokens), widths, left=before, color=shades(number % 20), label=label)
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_of(figure)


def channel_plot(values: Mapping[str, Estimate]) -> str:
    """Exclusive recall of the channels, and the overlap of each two."""
    alone = {key.split(".")[1]: value for key, value in values.items() if key.endswith(".exclusive_recall")}
    overlap = {key.split(".")[1]: value for key, value in values.items() if key.endswith(".overlap")}
    if not alone:
        return ""
    figure = Figure(figsize=(9.5, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_bars(left, alone)
    left.set_title("share of the basket that only this channel's 30 leaves hold")
    draw_bars(right, overlap)
    right.set_title("share of 30 leaves that both list")
    return svg_of(figure)
