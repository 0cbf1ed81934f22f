"""What was parsed from documents of a repository, by key and ETag, in one SQLite file that may be lost at any time.

A row is valid only for the ETag that it was read with: whether an object exists, and what its
ETag is now, always comes from a fresh listing. A torn, locked or foreign file acts as an empty cache: no
error ever comes from here, because no backup may depend on a cache.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from synapse_ops.domain.bounded_json import read_json

FORMAT = 4  # of a row; another number starts an empty cache
BUSY_TIMEOUT_S = 2.0  # another process writes its rows in milliseconds; a cache is not worth a longer wait
BATCH_ROWS = 2000

_TABLE = "create table if not exists document (key text primary key, etag text not null, body text not null)"

Facts = dict[str, Any]  # plain JSON


class DocumentCache:
    """A context manager around one file. Used by one thread; several processes may share the file."""

    def __init__(self, cache_dir: Path | None, repository_url: str) -> None:
        self._file = cache_dir / "catalog.sqlite" if cache_dir is not None else None
        self._url = repository_url
        self._pending: list[tuple[str, str, str]] = []
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        if self._file is None:
            return self
        with suppress(sqlite3.Error, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = _opened(self._file)
            except sqlite3.OperationalError:  # locked, or a read-only disk: not ours to throw away
                raise
            except sqlite3.DatabaseError:
                self._file.unlink()
                self._database = _opened(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        self._close()

    def get(self, key: str, etag: str) -> Facts | None:
        """Return what was kept for this very version of an object, or None."""
        if self._database is None:
            return None
        try:
            row = self._database.execute("select etag, body from document where key = ?", (self._url + key,)).fetchone()
            facts = read_json(row[1]) if row is not None and row[0] == etag else None
        except sqlite3.DatabaseError:
            self._throw_away()
            return None
        except ValueError:
            return None
        return facts if isinstance(facts, dict) else None

    def keep(self, key: str, etag: str, facts: Facts) -> None:
        """Remember facts that follow from the bytes of this version alone."""
        if self._database is None:
            return
        self._pending.append((self._url + key, etag, json.dumps(facts, separators=(",", ":"))))
        if len(self._pending) >= BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        rows, self._pending = self._pending, []
        if self._database is None or not rows:
            return
        try:
            with self._database:
                self._database.executemany("insert or replace into document values (?, ?, ?)", rows)
        except sqlite3.OperationalError:
            return  # busy or a full disk costs time at the next reading, never an answer
        except sqlite3.DatabaseError:
            self._throw_away()

    def _throw_away(self) -> None:
        self._close()
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink()

    def _close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None


def _opened(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)
    try:
        database.execute("pragma synchronous = off")  # losing the file costs one cold reading
        if database.execute("pragma user_version").fetchone()[0] != FORMAT:
            with database:
                database.execute("drop table if exists document")
                database.execute(_TABLE)
                database.execute(f"pragma user_version = {FORMAT}")
        database.execute("select etag, body from document limit 1").fetchone()
    except sqlite3.Error:
        database.close()
        raise
    return database
