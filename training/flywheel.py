"""The flywheel's decisions (section 7): what a round adds to the reward model's texts, and whether its policy is kept.

    recgpt train flywheel --rounds 3 --out runs/train/flywheel

A round starts from the best policy so far. It is kept if its policy hits more before the validation baskets of the same
households; one that is not kept is the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from eval.judged import JudgedText
from eval.metrics import Estimate, estimate
from eval.offline import known
from eval.tags import TagRun
from eval.training import HITS, Values, household_values, shared_runs
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.errors import OutputError


class Round(BaseModel):
    """What a round's policy is worth beside the one that it started from, on the households that both have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """From 1."""
    start: str
    """The policy that it started from: the best so far."""
    policy: str
    before: dict[str, Estimate]
    """Of `start`, by `HITS`; one that no household has a value of is left out."""
    after: dict[str, Estimate]
    """Of `policy`."""
    difference: Estimate
    """Household by household, of the mean of its hit rates: of all leaves, and of new ones where its basket has any."""
    kept: bool
    """Whether the mean difference is above 0."""


class Flywheel(BaseModel):
    """All rounds so far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    best: str
    """The best policy so far: a model's name or an adapter's directory."""
    ended: str | None
    """Why there is no further round; None while there is one."""
    settings: dict[str, object]
    rounds: list[Round]


def new_candidates(sampled: Iterable[JudgedText], earlier: Iterable[JudgedText]) -> list[JudgedText]:
    """The samples whose text is not a candidate of its context yet.

    A policy that gets surer of itself writes the same again: a second copy would tell the reward model nothing, and
    take the place of another candidate in its window.
    """
    seen = {_candidate(text) for text in earlier}
    found: dict[tuple[str, str, str], JudgedText] = {}
    for text in sampled:
        if (key := _candidate(text)) not in seen:
            found.setdefault(key, text)
    return list(found.values())


def _candidate(text: JudgedText) -> tuple[str, str, str]:
    return text.task.kind, text.context, text.task.subject.casefold()


def judge_round(
    number: int,
    policies: tuple[str, str],
    runs: tuple[Sequence[TagRun], Sequence[TagRun]],
    dataset: Dataset,
    embedder: Embedder,
) -> Round:
    """Compare a round's policy with the one that it started from.

    Args:
        number: of the round.
        policies: the one that it started from, and its own.
        runs: of these on validation households.
        dataset: what the runs are about.
        embedder: of tags and leaf names.

    Raises:
        OutputError: the two have no household in common.
    """
    shared = shared_runs(dict(zip(("before", "after"), runs, strict=True)), [run.case for run in runs[1]])
    before, after = (household_values(own, dataset, embedder, {}) for own in shared.values())
    gains = [own - other for own, other in zip(_means(after), _means(before), strict=True)]
    difference = estimate(gains)
    return Round(
        number=number,
        start=policies[0],
        policy=policies[1],
        before=_estimates(before),
        after=_estimates(after),
        difference=difference,
        kept=difference.mean > 0,
    )


def _means(values: Values) -> list[float]:
    """The mean of each household's hit rates."""
    return [float(np.mean(known(own))) for own in zip(*(values[key] for key in HITS), strict=True)]


def _estimates(values: Values) -> dict[str, Estimate]:
    return {key: estimate(own) for key in HITS if (own := known(values[key]))}


def best_round(rounds: Sequence[Round]) -> int:
    """The number of the last round that was kept; 0 for the policy that all started from."""
    return max((one.number for one in rounds if one.kept), default=0)


def reason_to_end(rounds: Sequence[Round], most: int) -> str | None:
    """Why there is no further round; None where there is one.

    Args:
        rounds: so far.
        most: so many rounds at most.
    """
    if rounds and not rounds[-1].kept:
        return f"round {rounds[-1].number} does not improve on the validation households, and is not kept"
    return f"{len(rounds)} rounds are done" if len(rounds) >= most else None


def read_round(path: Path) -> Round | None:
    """The figures of a round; None if there is no such file.

    Raises:
        OutputError: it holds something else.
    """
    try:
        return Round.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValidationError) as error:
        raise OutputError(f"{path} has no figures of a round ({error}); remove it, it is made again") from error
