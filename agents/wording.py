"""How facts are put into the fields of a prompt, the same for every agent."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from agents.schemas import Household, Persona
from tools.history import DayLine, EventLine, HistoryLine
from tools.shelf import tag_text
from tools.signals import Signal

_AHEAD = re.compile(r" (?:today|tomorrow|in \d+ days?)$")


def moment_text(as_of: datetime) -> str:
    """`Friday, 17 November 2017, 09:30`."""
    return f"{as_of:%A}, {as_of.day} {as_of:%B %Y, %H:%M}"


def profile_text(profile: str | None) -> str:
    """The profile, or that there is none."""
    return profile or "unknown"


def evidence_lines(lines: Sequence[HistoryLine], as_of: datetime) -> list[Mapping[str, Any]]:
    """History lines as entries of a list field: id, text, rhythm."""
    return [{"id": line.id, "text": line.text, "rhythm": line.rhythm(as_of)} for line in lines]


def event_lines(events: Sequence[EventLine]) -> list[Mapping[str, Any]]:
    """Plain events as entries of a list field: text, and what was done on which day."""
    return [{"text": event.text, "dated": event.dated} for event in events]


def day_lines(days: Sequence[DayLine], as_of: datetime) -> list[Mapping[str, Any]]:
    """Days as entries of a list field: what was done and when, and the entities."""
    return [{"dated": line.dated(as_of), "texts": line.entities} for line in days]


def citation(line: HistoryLine) -> str:
    """`h3 white milk`: how the planner names a line as evidence.

    With the word and not the id alone, what it chose and what it calls the persona stand in one text.
    """
    return f"{line.id} {tag_text(line.leaf or line.text)}"


def own_lines(lines: Sequence[HistoryLine], leaf: str) -> list[HistoryLine]:
    """The history of one leaf, such as an item's own."""
    return [line for line in lines if line.leaf == leaf]


def with_own_lines(household: Household, history: Sequence[HistoryLine], leaves: Collection[str]) -> Household:
    """The household with a line of each of these leaves that it has any history of: its most telling one.

    The planner's prompt may have had no room for it; without it an explanation would call the leaf new.

    Args:
        household: with the lines that the agents saw.
        history: all lines.
        leaves: of the items that are shown.
    """
    wanted = set(leaves) - {line.leaf for line in household.history}
    missing: dict[str | None, HistoryLine] = {}
    for line in sorted(history, key=lambda line: (line.action != "purchase", -line.weight)):
        if line.leaf in wanted:
            missing.setdefault(line.leaf, line)
    first = len(household.history) + 1
    added = [line.model_copy(update={"id": f"h{number}"}) for number, line in enumerate(missing.values(), first)]
    return household.model_copy(update={"history": [*household.history, *added]}) if added else household


def own_text(lines: Sequence[HistoryLine], as_of: datetime) -> str:
    """`bought 9x, every 12 days, last 3 days ago`, or that it is new to the household."""
    return "; ".join(line.rhythm(as_of) for line in lines) or "not bought yet"


def persona_text(persona: Persona | None) -> dict[str, str]:
    """The fields `persona` and `intent`; an item that no tag found has no persona."""
    if persona is None:
        return {"persona": "the household", "intent": "unknown"}
    return {"persona": persona.name, "intent": persona.intent}


def occasion_of(signal: Signal) -> str | None:
    """What a text may allude to by a signal: `Thanksgiving Day`, `autumn`; None if it tells of neither."""
    if signal.kind == "season":
        return signal.text.removeprefix("Season: ").split(",")[0].split()[-1]
    return _AHEAD.sub("", signal.text) if signal.kind == "holiday" else None


def shelf_text(category: Sequence[str]) -> str:
    """`Grocery > Cheese > Shredded Cheese`."""
    return " > ".join(category)
