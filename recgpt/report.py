"""The report: one self-contained HTML page from output lines, for a person to read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from agents.schemas import Household, Recommendation
from tools.errors import OutputError
from tools.history import HistoryLine

RECENT_LINES = 15


def write_report(path: Path, results: Iterable[Recommendation]) -> None:
    """Write the page of some households.

    Raises:
        OutputError: it could not be written.
    """
    environment = Environment(
        loader=PackageLoader("recgpt", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["shown_history"] = shown_history
    page = environment.get_template("report.html.j2").render(results=list(results))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error}") from error


def shown_history(result: Recommendation) -> tuple[list[HistoryLine], list[HistoryLine]]:
    """History lines that the page opens with (the newest, and all that evidence refers to), and the rest."""
    household: Household = result.household
    cited = {line.id for persona in result.personas for line in persona.evidence}
    cited |= {line_id for item in result.items for line_id in item.evidence}
    cited |= {claim.support for item in result.items for claim in item.claims or [] if claim.support}
    newest = {line.id for line in household.history[-RECENT_LINES:]}
    shown = [line for line in reversed(household.history) if line.id in cited | newest]
    rest = [line for line in reversed(household.history) if line.id not in cited | newest]
    return shown, rest
