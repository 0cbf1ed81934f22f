"""An independent writer: commits rows one by one, and notes each that was acknowledged in a file outside the server.

    python ledger_writer.py CONNINFO FILE [PAUSE_S]

A line is the row's number, when its commit was acknowledged and when it was committed (seconds since 1970), and a WAL
position behind it. A row whose acknowledgement a crash swallowed is noted once it is found. Runs until it is killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psycopg

_FACTS = """
SELECT n, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, pg_current_wal_insert_lsn()::text
  FROM ledger WHERE n >= %s ORDER BY n"""


def note(connection: psycopg.Connection[Any], file: Path, first: int, acknowledged_at_s: float | None) -> None:
    with file.open("a") as ledger:
        for number, committed_at_s, lsn in connection.execute(_FACTS, [first]).fetchall():
            ledger.write(f"{number} {acknowledged_at_s or committed_at_s:.6f} {committed_at_s:.6f} {lsn}\n")


def write(conninfo: str, file: Path, pause_s: float) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        known = len(file.read_text().splitlines()) if file.exists() else 0
        [[number]] = connection.execute("SELECT count(*) FROM ledger").fetchall()
        if number > known:
            note(connection, file, known + 1, None)
        while True:
            number += 1
            connection.execute("INSERT INTO ledger VALUES (%s, repeat(md5(%s::text), 5))", [number, number])
            note(connection, file, number, time.time())
            time.sleep(pause_s)


def main(conninfo: str, file: Path, pause_s: float = 0.0) -> None:
    while True:
        try:
            write(conninfo, file, pause_s)
        except psycopg.Error:
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:]))
