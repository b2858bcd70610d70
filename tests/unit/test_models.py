"""Models that are made here: once, whoever asks."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools import models
from tools.models import BASE_MODEL, MANIFEST, model_path


def say(message: str) -> None:
    """Progress that nobody reads."""


def test_a_model_is_made_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, together = [], threading.Barrier(3)

    def convert(target: Path, report: object) -> None:
        made.append(target)
        time.sleep(0.2)  # the others find nothing meanwhile
        target.mkdir()
        (target / MANIFEST).write_text('{"files": {}}')

    def ask() -> str:
        together.wait()
        return model_path(BASE_MODEL, say)

    monkeypatch.setattr(models, "MODELS_DIRECTORY", tmp_path / "models")
    monkeypatch.setattr(models, "convert_base_model", convert)
    with ThreadPoolExecutor(3) as pool:
        found = {pool.submit(ask) for _ in range(3)}
    assert {one.result() for one in found} == {str(tmp_path / "models" / BASE_MODEL)}
    assert made == [tmp_path / "models" / BASE_MODEL]
