"""Rewards of the policy: pure functions of what it wrote."""

from __future__ import annotations

import math
import re
from collections import Counter, deque

BUFFER = 160
"""Recent explanations that a new one is compared with (section 6)."""

_WORD = re.compile(r"\w[\w'’-]*")


class RecentExplanations:
    """The FIFO buffer M of the latest explanations, and how unlike them another one is (section 6)."""

    def __init__(self, size: int = BUFFER) -> None:
        """An empty buffer of `size` texts."""
        self._texts: deque[frozenset[str]] = deque()
        self._frequency: Counter[str] = Counter()
        self._size = size

    def __len__(self) -> int:
        """|M|."""
        return len(self._texts)

    def add(self, text: str) -> None:
        """Put a text in; where the buffer is full the oldest goes."""
        if len(self) == self._size:
            self._frequency.subtract(self._texts.popleft())
        self._texts.append(frozenset(_words(text)))
        self._frequency.update(self._texts[-1])

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
