"""Large things are loaded once a process, also when many requests ask for them at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def load_once(maxsize: int) -> Callable[[F], F]:
    """`functools.lru_cache` whose misses wait for each other instead of loading the same thing twice."""

    def decorate(load: F) -> F:
        cached = lru_cache(maxsize=maxsize)(load)
        lock = threading.RLock()

        @wraps(load)
        def locked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (the signature is that of `load`, see F)
            with lock:
                return cached(*args, **kwargs)

        return cast(F, locked)

    return decorate
