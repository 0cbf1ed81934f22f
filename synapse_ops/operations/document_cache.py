"""What was parsed from documents of a repository, by key and ETag, in one SQLite file that may be lost at any time.

Only facts that follow from the bytes of one version of one object are kept, so an entry is never stale: another
version has another ETag and so another row. A damaged file is thrown away and built again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from synapse_ops.domain.backup_record import Verdict
from synapse_ops.domain.catalog import BackupFacts, ProofFacts

FORMAT = 1  # of a row; another number starts an empty cache


class DocumentCache:
    """A context manager; reads all rows at entry, writes the new ones at exit. Safe to use from several threads."""

    def __init__(self, cache_dir: Path | None, repository_url: str) -> None:
        self._file = cache_dir / "catalog.sqlite" if cache_dir is not None else None
        self._url = repository_url
        self._known: dict[str, tuple[str, str]] = {}
        self._new: list[tuple[str, str, str, str]] = []

    def __enter__(self) -> Self:
        if self._file is not None:
            try:
                self._known = self._load(self._file)
            except sqlite3.Error:
                self._discard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or not self._new:
            return
        try:
            self._store(self._file)
        except (sqlite3.Error, OSError):
            self._discard()  # a cache that cannot be written costs time, never an answer

    def backup_facts(self, key: str, etag: str, read: Callable[[str], BackupFacts]) -> BackupFacts:
        """Return the facts of one version of a backup.json, reading it only when it is not known."""
        known = self._row(key, etag)
        if known is not None:
            return BackupFacts(**_with_times(known, ("finished_at", "database_time")))
        facts = read(key)
        if not facts.unreadable_reason:
            self._keep(key, etag, asdict(facts))
        return facts

    def proof_facts(self, key: str, etag: str, read: Callable[[str], ProofFacts | None]) -> ProofFacts | None:
        """Return the facts of one version of a proof, or None where it cannot be read."""
        known = self._row(key, etag)
        if known is not None:
            body = _with_times(known, ("finished_at",))
            return ProofFacts(**{**body, "verdict": Verdict(body["verdict"])})
        facts = read(key)
        if facts is not None:
            self._keep(key, etag, asdict(facts))
        return facts

    def _row(self, key: str, etag: str) -> dict[str, Any] | None:
        known_etag, body = self._known.get(key, ("", ""))
        return json.loads(body) if known_etag == etag else None

    def _keep(self, key: str, etag: str, facts: dict[str, Any]) -> None:
        self._new.append((self._url, key, etag, json.dumps(facts, default=datetime.isoformat)))

    def _load(self, file: Path) -> dict[str, tuple[str, str]]:
        if not file.exists():
            return {}
        with _opened(file) as database:
            if database.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                return {}
            rows = database.execute("SELECT key, etag, body FROM document WHERE url = ?", (self._url,))
            return {key: (etag, body) for key, etag, body in rows}

    def _store(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _opened(file) as database, database:
            if database.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                database.execute("DROP TABLE IF EXISTS document")
                database.execute(f"PRAGMA user_version = {FORMAT}")
            database.execute(
                "CREATE TABLE IF NOT EXISTS document (url TEXT, key TEXT, etag TEXT, body TEXT, PRIMARY KEY (url, key))"
            )
            database.executemany("INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)", self._new)

    def _discard(self) -> None:
        self._known = {}
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink()


def _opened(file: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(file, timeout=5))


def _with_times(body: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**body, **{name: datetime.fromisoformat(body[name]) for name in names if body[name] is not None}}
