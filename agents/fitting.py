"""How many lines of a history fit into a prompt, by the server's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage

from agents.context import Context
from tools.llm import measure_prompt

REPAIR_TOKENS = 120
"""Room for the reason why an answer was rejected."""
CHARACTERS_A_TOKEN_AT_MOST = 8
"""No text has longer tokens on average: lines beyond this are cut before anything is counted."""


@dataclass(frozen=True)
class Fit:
    """What fits."""

    lines: int
    """At least `least`, even where that is too long."""
    budget: int
    """Tokens that the prompt may have."""


async def fit_lines(
    context: Context,
    agent: str,
    characters: Sequence[int],
    render: Callable[[int], Sequence[BaseMessage]],
    *,
    answer: int,
    most: int,
    least: int = 1,
) -> Fit:
    """The most lines whose prompt fits into `most` tokens, and into the window less the answer and its repairs.

    Args:
        context: of the request.
        agent: whose prompt it is.
        characters: at least so many that each line adds to the prompt, the line that is kept first being the first;
            an input embedding counts as the longest token.
        render: the prompt with so many of them.
        answer: tokens of the answer.
        most: bound of the prompt's tokens.
        least: lines that are kept even where they are too long.

    Raises:
        ServerUnreachableError: the server did not answer.
        ServerError: the prompt has entities, and the server takes none.
    """
    window = (await measure_prompt(context.endpoint(agent), render(least), context.default_window)).window
    budget = min(most, window - answer - REPAIR_TOKENS * (context.attempts > 1))
    kept = max(least, _worth_counting(characters, budget))
    while kept > least:
        size = await measure_prompt(context.endpoint(agent), render(kept), context.default_window)
        if size.tokens <= budget:
            break
        kept = max(least, min(kept - 1, int(kept * budget / size.tokens)))
    return Fit(kept, budget)


def _worth_counting(characters: Sequence[int], tokens: int) -> int:
    """How many lines can fit at all; 100,000 lines need not be sent to a tokenizer to know that they don't."""
    total = 0
    for count, own in enumerate(characters):
        total += own
        if total > tokens * CHARACTERS_A_TOKEN_AT_MOST:
            return count
    return len(characters)
