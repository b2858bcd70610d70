"""Answers of models kept by content: the same question to the same weights is asked once, and costs nothing again."""

from __future__ import annotations

import json
import lzma
import sqlite3
from pathlib import Path
from threading import Lock

import structlog

from tools.errors import OutputError
from tools.loading import load_once

log = structlog.get_logger("recgpt")


class AnswerStore:
    """A SQLite file of answers by key; safe for threads, and for processes that share the file."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OutputError: it can't be opened, or is no such file.
        """
        self._lock = Lock()
        self._path = path
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
        """The answer of a key.

        Raises:
            OutputError: the file can't be read.
        """
        try:
            with self._lock:
                row = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise OutputError(f"the kept answers in {self._path} can't be read ({error}); give another file") from error
        return None if row is None else str(row[0])

    def put(self, key: str, answer: str) -> None:
        """Keep an answer; a second one of the same key replaces the first.

        One that can't be kept, on a full disk or in a locked file, is a warning in the log: the caller has it, and it
        was paid for.
        """
        try:
            with self._lock:
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))
        except sqlite3.Error as error:
            log.warning("answer_not_kept", file=str(self._path), reason=str(error))

    def save(self, path: Path) -> int:
        """Write all answers into a compressed file (JSON lines, xz), in the order of their keys; returns how many.

        Raises:
            OutputError: it can't be written.
        """
        partial = path.with_suffix(".partial")
        try:
            with self._lock:
                rows = self._file.execute("SELECT key, answer FROM answers ORDER BY key").fetchall()
            with lzma.open(partial, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            partial.replace(path)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{path} could not be written from {self._path} ({error})") from error
        return len(rows)

    def load(self, path: Path) -> int:
        """Take over the answers of a file that `save` wrote; returns how many it has.

        Raises:
            OutputError: there is no such file, it is damaged, or what it has can't be kept; then none of it is.
        """
        try:
            with lzma.open(path, "rt", encoding="utf-8") as file:
                rows = [(str(key), str(answer)) for key, answer in map(json.loads, file)]
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
            raise OutputError(f"{path} holds no answers that were saved ({error!r})") from error
        try:
            with self._lock, self._file:  # which commits, or rolls back on any error
                self._file.execute("BEGIN")
                self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise OutputError(f"the answers of {path} can't be kept in {self._path} ({error})") from error
        return len(rows)


@load_once(maxsize=4)
def open_answers(path: Path) -> AnswerStore:
    """The store of a file, one a process."""
    return AnswerStore(path)
