"""What is loaded once: one load a key, hits that wait for nothing, and the last used that stay."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.loading import load_once


def test_calls_of_one_key_wait_for_the_first_and_load_once() -> None:
    begun, go_on, loads = threading.Event(), threading.Event(), []

    @load_once(maxsize=4)
    def load(key: str) -> list[str]:
        loads.append(key)
        begun.set()
        assert go_on.wait(10)
        return [key]

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(load, "a") for _ in range(4)]
        assert begun.wait(10)
        go_on.set()
        values = [call.result(10) for call in calls]
    assert loads == ["a"] and all(value is values[0] for value in values)


def test_other_keys_wait_for_no_load() -> None:
    begun, go_on = threading.Event(), threading.Event()

    @load_once(maxsize=4)
    def load(key: str) -> str:
        if key == "slow":
            begun.set()
            assert go_on.wait(10)
        return key

    load("there")
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(load, "slow")
        assert begun.wait(10)
        assert pool.submit(load, "there").result(5) == "there"  # a hit
        assert pool.submit(load, "new").result(5) == "new"  # another miss
        go_on.set()
        assert slow.result(10) == "slow"


def test_the_last_used_stay_and_errors_are_not_kept() -> None:
    loads: list[str] = []

    @load_once(maxsize=2)
    def load(key: str) -> None:
        loads.append(key)
        if loads == ["a"]:
            raise ValueError(key)

    with pytest.raises(ValueError, match="a"):
        load("a")
    for key in ("a", "b", "a", "c", "a", "b"):
        load(key)
    assert loads == ["a", "a", "b", "c", "b"]
