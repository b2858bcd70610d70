"""A page of figures: plots and tables in one self-contained HTML file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from eval.metrics import Estimate

BLUE, GREY, GREEN = "#2457c5", "#9aa3b2", "#1b7f4d"

mpl.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "recgpt"})


@dataclass(frozen=True)
class Table:
    """A table of estimates; one without rows is left out."""

    heading: str
    corner: str
    """What the rows are."""
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Estimate | None]]
    counts: bool = False
    """Whether a cell tells its n."""


def write_page(path: Path, title: str, intro: str, plots: Mapping[str, str], tables: Sequence[Table]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        title: of the page.
        intro: a sentence or two on what the figures are.
        plots: SVG by heading, see `svg_of`; an empty one is left out.
        tables: in their order.
    """
    environment = Environment(
        loader=PackageLoader("eval", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        intro=intro,
        plots={heading: Markup(svg) for heading, svg in plots.items() if svg},
        tables=tables,
    )
    path.write_text(page, encoding="utf-8")


def list_of(heading: str, values: Mapping[str, Estimate]) -> Table:
    """A table with a row a figure."""
    return Table(heading, "figure", ["mean"], {key: [value] for key, value in values.items()}, counts=True)


def draw_bars(axes: mpl.axes.Axes, found: Mapping[str, Estimate], colours: Mapping[str, str] = {}) -> None:
    """A horizontal bar a name with its interval, the first on top.

    Args:
        axes: to draw on.
        found: what.
        colours: of the names that are not grey.
    """
    names: Sequence[str] = list(found)[::-1]
    means = [found[name].mean for name in names]
    errors = [
        [found[name].mean - found[name].low for name in names],
        [found[name].high - found[name].mean for name in names],
    ]
    bars = axes.barh(
        names, means, xerr=errors, color=[colours.get(name, GREY) for name in names], error_kw={"lw": 1, "capsize": 2}
    )
    for row, name in enumerate(names):
        place = bars[row].get_y() + bars[row].get_height() / 2  # panels that share names share their places
        label = f"{found[name].mean:.3f}"
        axes.annotate(label, (0, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def svg_of(figure: Figure) -> str:
    """A figure as SVG, the same bytes for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
