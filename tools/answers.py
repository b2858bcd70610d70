"""Answers of models kept by content: the same question to the same weights is asked once, and costs nothing again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from threading import Lock

from tools.errors import OutputError
from tools.loading import load_once


class AnswerStore:
    """A SQLite file of answers by key; safe for threads, and for processes that share the file."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OutputError: it can't be opened, or is no such file.
        """
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
            # Readers don't wait for writers, and a crash loses at most the last answers.
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{path} can't be used to keep answers ({error}); give another file") from error

    def get(self, key: str) -> str | None:
        """The answer of a key."""
        with self._lock:
            row = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, answer: str) -> None:
        """Keep an answer; a second one of the same key replaces the first."""
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))


@load_once(maxsize=4)
def open_answers(path: Path) -> AnswerStore:
    """The store of a file, one a process."""
    return AnswerStore(path)
