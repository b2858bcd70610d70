"""Large things are loaded once a process, also when many requests ask for them at the same moment."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

F = TypeVar("F", bound=Callable[..., Any])


def load_once(maxsize: int) -> Callable[[F], F]:
    """Keep the last used values of a function, `maxsize` of them, as `functools.lru_cache` does.

    Calls with the same arguments wait for the first of them instead of loading the same thing twice; they wait for no
    others. An error is not kept: the next call tries again.
    """

    def decorate(load: F) -> F:
        found: OrderedDict[Hashable, Any] = OrderedDict()
        # A lock a key, there while a call holds it or waits for it.
        loading: WeakValueDictionary[Hashable, threading.RLock] = WeakValueDictionary()
        guard = threading.Lock()  # of these two, held for a moment only

        @wraps(load)
        def once(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (the signature is that of `load`, see F)
            key = (args, tuple(sorted(kwargs.items())))
            with guard:
                if key in found:
                    found.move_to_end(key)
                    return found[key]
                lock = loading.setdefault(key, threading.RLock())
            with lock:
                with guard:
                    if key in found:  # loaded while this call waited
                        return found[key]
                value = load(*args, **kwargs)
                with guard:
                    found[key] = value
                    if len(found) > maxsize:
                        found.popitem(last=False)
            return value

        return cast(F, once)

    return decorate
