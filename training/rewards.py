"""Rewards of the policy: pure functions of what it wrote (sections 5 and 6)."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from eval.metrics import hit_rate_at_k
from eval.splits import Case

BUFFER = 160
"""Recent explanations that a new one is compared with (section 6)."""
WORDS = range(2, 5)
"""Words of a tag for the whole length reward, see `length_reward`."""
NEARLY = (1, 5)
"""Words of a tag for half of it."""

_WORD = re.compile(r"\w[\w'’-]*")


@dataclass(frozen=True)
class Parts:
    """The rewards of one list of tags, R_acc, R_align, R_div and R_len of section 5, or their weights in SUM."""

    accuracy: float
    alignment: float
    diversity: float
    length: float


@dataclass(frozen=True)
class Thresholds:
    """The least that each secondary reward must be, tau of section 5; the report gives no values."""

    alignment: float
    diversity: float
    length: float


def accuracy_reward(tags: Sequence[str], bought: Sequence[str], new: Sequence[str], listed: int) -> float:
    """`R_acc = (1/|C_gt|) sum_c 1[c in tags]` of section 5, twice, by the metric of the evaluation, `hit_rate_at_k`.

    The mean of two hit rates: of all leaves bought next among the first `listed` tags, and of those among them that
    were never bought before, among all tags. Where nothing new was bought, the first alone. Of the tags a, b, c, with
    a, c and d bought, c new and `listed` 2, it is `(1/3 + 1/1) / 2 = 0.667`.

    Args:
        tags: what the expert wrote, best first.
        bought: leaves bought next, as tag texts.
        new: those of them that were never bought before.
        listed: how many tags of one expert the evaluation counts: a third of HR@30, of three experts.

    Raises:
        ValueError: nothing was bought.
    """
    case = Case("", datetime.min, target=frozenset(bought), bought=frozenset(bought) - frozenset(new))
    among_all = hit_rate_at_k(tags, case, listed, new=False)
    if among_all is None:
        raise ValueError("nothing was bought next: there is nothing to hit; leave such examples out")
    among_new = hit_rate_at_k(tags, case, len(tags), new=True)
    return among_all if among_new is None else (among_all + among_new) / 2


def alignment_reward(scores: Sequence[float]) -> float:
    """`R_align = mean_i f_RM(t_i, p_k)` of section 5.

    Args:
        scores: of the reward model for each tag, between 0 and 1; at least one.
    """
    return sum(scores) / len(scores)


def diversity_reward(vectors: NDArray[np.float32]) -> float:
    """`R_div` of section 5: mean of `1 - cos(t_i, t_j)` over all pairs `i < j`; 0 of less than two tags.

    Args:
        vectors: embeddings of the tags (n, d), unit vectors.
    """
    if len(vectors) < 2:
        return 0.0
    first, second = np.triu_indices(len(vectors), 1)
    return float(np.mean(1.0 - (vectors @ vectors.T)[first, second]))


def length_reward(tags: Sequence[str]) -> float:
    """`R_len` of section 5: mean over the tags of 1 for 2 to 4 words, 1/2 for 1 or 5, else 0.

    The report's bounds (6 to 11 words, neighbours 4 to 6 and 11 to 13) are of Chinese words. These are of English
    ones: the 2,230 leaves of the default data set, as tags, have 1 word at the 1 % quantile, 2 at 5 and 25 %, 3 in
    the median, 4 at 75 %, 6 at 95 % and 7 at 99 %; 78 % have 2 to 4 words (75 % of what is bought), 16 % have 1 or 5.
    """
    counts = [len(tag.split()) for tag in tags]
    return sum(1.0 if count in WORDS else 0.5 if count in NEARLY else 0.0 for count in counts) / len(counts)


def summed_reward(parts: Parts, weights: Parts) -> float:
    """SUM of section 5, `R = sum_j w_j R_j`: the variant that constrained shaping is compared with."""
    return float(sum(weight * part for weight, part in zip(astuple(weights), astuple(parts), strict=True)))


def constrained_reward(parts: Parts, thresholds: Thresholds) -> float:
    """CRS of section 5, `R = R_acc * 1[R_align >= tau] * 1[R_div >= tau] * 1[R_len >= tau]`."""
    return parts.accuracy if all(gates(parts, thresholds).values()) else 0.0


def gates(parts: Parts, thresholds: Thresholds) -> dict[str, bool]:
    """The indicators of CRS by name: whether each secondary reward reaches its threshold."""
    return {
        "alignment": parts.alignment >= thresholds.alignment,
        "diversity": parts.diversity >= thresholds.diversity,
        "length": parts.length >= thresholds.length,
    }


def thresholds_at(parts: Sequence[Parts], share: float) -> Thresholds:
    """Thresholds that each keep out about this share of some answers, the same of each secondary reward.

    The report gives no values, and those of one reward model or catalogue would not be another's.

    Args:
        parts: of the answers.
        share: between 0 and 1; the thresholds are these quantiles.

    Raises:
        ValueError: there are no answers.
    """
    if not parts:
        raise ValueError("there are no answers to take thresholds from")
    _, *secondary = np.quantile([astuple(one) for one in parts], share, axis=0).tolist()
    return Thresholds(*secondary)


def annealed(start: Thresholds, end: Thresholds, progress: float) -> Thresholds:
    """Thresholds on the line from `start` to `end`.

    Hard gates from the first step on leave most groups without any reward, and so without a gradient.

    Args:
        start: at 0.
        end: at 1.
        progress: share of the steps that are done.
    """
    return Thresholds(
        *(one + (other - one) * progress for one, other in zip(astuple(start), astuple(end), strict=True))
    )


def explanation_reward(alignment: float, diversity: float, threshold: float) -> float:
    """`R = R_align * 1[R_div >= tau]` of section 6.

    Args:
        alignment: score of the reward model, between 0 and 1.
        diversity: see `RecentExplanations.diversity_reward`.
        threshold: tau.
    """
    return alignment if diversity >= threshold else 0.0


class RecentExplanations:
    """The FIFO buffer M of the latest explanations, and how unlike them another one is (section 6)."""

    def __init__(self, size: int = BUFFER) -> None:
        """An empty buffer of `size` texts."""
        self._texts: deque[str] = deque()
        self._frequency: Counter[str] = Counter()
        self._size = size

    def __len__(self) -> int:
        """|M|."""
        return len(self._texts)

    @property
    def texts(self) -> list[str]:
        """What is in it, the oldest first."""
        return list(self._texts)

    def add(self, text: str) -> None:
        """Put a text in; where the buffer is full the oldest goes."""
        if len(self) == self._size:
            self._frequency.subtract(set(_words(self._texts.popleft())))
        self._texts.append(text)
        self._frequency.update(set(_words(text)))

    def diversity_reward(self, text: str) -> float:
        """`R_div = (1/L) * sum_i log(|M| / (df(w_i) + 1))` over the L words of the text (section 6).

        df(w) is the number of texts in the buffer with the word w. The text itself is not in the buffer unless it was
        put there. With two texts in the buffer, "milk bread" and "milk", the reward of "milk tea" is
        `(log(2 / 3) + log(2 / 1)) / 2 = 0.144`. A text without words has 0.

        Raises:
            ValueError: the buffer is empty: nothing can be unlike nothing.
        """
        if not self._texts:
            raise ValueError("the buffer of recent explanations is empty; add some texts before asking for rewards")
        words = _words(text)
        logs = [math.log(len(self) / (self._frequency[word] + 1)) for word in words]
        return sum(logs) / len(logs) if logs else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
