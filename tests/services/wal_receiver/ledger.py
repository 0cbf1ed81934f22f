"""What an independent writer has noted (ledger_writer.py), and what a restore gives back of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database.restore_cluster import newest_place
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.postgres.programs import PgTools
from tests.operations.database.clusters import started
from tests.services.wal_receiver import ledger_writer


@dataclass(frozen=True)
class Row:
    """lsn: a position behind its commit."""

    number: int
    acknowledged_at_s: float
    committed_at_s: float
    lsn: Lsn


def read_ledger(file: Path) -> list[Row]:
    """Return the rows, of which none is missing in between."""
    lines = [line.split() for line in file.read_text().splitlines()]
    rows = [Row(int(n), float(at), float(committed), Lsn.parse(lsn)) for n, at, committed, lsn in lines]
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return rows


def start_writer(conninfo: str, file: Path, pause_s: float = 0.0) -> subprocess.Popen[bytes]:
    with file.with_suffix(".log").open("ab") as log:
        command = [sys.executable, ledger_writer.__file__, conninfo, str(file), str(pause_s)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def restored_rows(stack: Stack, until: str, folder: Path, tools: PgTools, timeline: int | None = None) -> int:
    """Restore into a new directory, and return how many rows of the ledger there are: all up to a number."""
    target, repository = folder / "restored", stack.database_repository()
    place = newest_place(repository, until, timeline, ())
    request = RestoreRequest(
        repository, place, str(target), None, folder / "work", until=until, timeline=timeline, timeout_s=200
    )
    BASES.apply_restore(request, BASES.plan_restore(request))
    with started(target, tools) as conninfo, psycopg.connect(conninfo) as connection:
        row = connection.execute("select count(*), coalesce(max(n), 0) from ledger").fetchone()
    shutil.rmtree(target)
    assert row is not None
    assert row[0] == row[1], "rows are missing in between"
    return int(row[0])
