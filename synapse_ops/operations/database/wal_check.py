"""Whether WAL archiving works, tried from end to end: a restore point is made and seen to arrive in the repository.

What would stop it later is looked at as well: rights, settings, the slot. Each row has the command that corrects it.
Source: PostgreSQL documentation, "Replication" settings and pg_replication_slots.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.synchronous import Synchronous, unprotected
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_space import say_time_left, time_left_s, wal_space
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.synchronous import read_escaping, read_synchronous
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.wal_fetch import fetch_segment
from synapse_ops.operations.database.wal_source import SLOT, wal_conninfo, wal_conninfos
from synapse_ops.spec.fixed import is_this_machine
from synapse_ops.systems.postgres.connection import connect, describe, postgres_errors
from synapse_ops.systems.postgres.identity import ensure_identity
from synapse_ops.systems.postgres.standby_slot import read_standby_slot
from synapse_ops.systems.postgres.wal_pace import read_wal_pace

if TYPE_CHECKING:
    import psycopg

    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.stack import Stack

WAIT_S = 30.0
SEGMENT_S = 60  # most that archive_timeout may be
PUSH = "/opt/synapse-ops/bin/synapse-ops wal push --state-dir /var/lib/synapse-ops %p"
POLL_S = 0.25
_UNKNOWN_VOLUME = 40 << 30
_START = "start the receiver: python -m synapse_ops.services.wal_receiver (synapse-ops local up does)"

_SETTINGS = """
SELECT current_setting('wal_level'), current_setting('archive_mode'), current_setting('archive_command'),
       current_setting('max_slot_wal_keep_size'), current_setting('max_wal_senders')::int,
       (SELECT count(*) FROM pg_stat_replication)::int,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT setting::bigint * 1048576 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
       (SELECT setting FROM pg_settings WHERE name = 'data_directory')"""
_ARCHIVER = """
SELECT current_setting('archive_mode'), current_setting('archive_command'),
       (SELECT setting::int FROM pg_settings WHERE name = 'archive_timeout'), last_archived_wal,
       CASE WHEN last_failed_time >= coalesce(last_archived_time, '-infinity') THEN last_failed_wal END, failed_count
FROM pg_stat_archiver"""
_SUMMARIES = "SELECT setting FROM pg_settings WHERE name = 'summarize_wal'"
_SLOT = "SELECT active, coalesce(wal_status, ''), safe_wal_size FROM pg_replication_slots WHERE slot_name = %s"


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One thing that was looked at. fault: empty when it is right. fix: what corrects it."""

    what: str
    found: str
    fault: str = ""
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "found": self.found, "fault": self.fault or None, "fix": self.fix or None}


def check_wal(stack: Stack, *, progress: ReportProgress = ignore_progress) -> tuple[CheckRow, ...]:
    """Return everything that was looked at. Raises what the primary or the repository raise when they do not answer."""
    conninfo = wal_conninfo(stack)
    with connect(conninfo) as connection:
        identity = ensure_identity(connection)
        by_command = stack.spec.backup.database.wal_archiving == "command"
        rows = [CheckRow("primary", f"{describe(conninfo)}, identity {identity}")]
        rows += _settings(connection, by_command=by_command)
        rows += check_archiver(connection) if by_command else [_slot(connection)]
        if stack.spec.backup.database.base.full_every is not None:
            with postgres_errors("the settings of the primary"):
                found = connection.execute(_SUMMARIES).fetchone()
            rows.append(judge_summaries(found[0] if found is not None else None))
        if not by_command:
            rows += check_standby_slots(stack, read_wal_pace(connection, SLOT).flushed)
        found = read_synchronous(connection, stack.spec)
        if found.is_wanted:
            rows.append(judge_synchronous(found, read_escaping(connection)))
        rows += _arrival(stack, connection, identity, progress)
    return tuple(rows)


def _settings(connection: psycopg.Connection[Any], *, by_command: bool) -> Iterator[CheckRow]:
    with postgres_errors("the settings of the primary"):
        row = connection.execute(_SETTINGS).fetchone()
    if row is None:
        return
    level, mode, command, keep, senders, used, may_replicate, keep_bytes, data_dir = row
    fault = "" if level in {"replica", "logical"} else "WAL holds too little to recover from"
    yield CheckRow("wal_level", level, fault, "alter system set wal_level = 'replica'; then restart" if fault else "")
    idle = not by_command and mode != "off" and command.strip() in {"/bin/true", "true", ":"}
    yield CheckRow(
        "archive_mode",
        mode if mode == "off" else f"{mode}, by {command or 'a library'}",
        "it reports success for WAL that is not stored" if idle else "",
        "alter system set archive_mode = 'off'; then restart" if idle else "",
    )
    volume = _volume(data_dir) if is_this_machine(connection.info.host) else None
    if not by_command:
        yield judge_slot_limit(keep, keep_bytes, volume)
    full = used >= senders
    yield CheckRow(
        "max_wal_senders",
        f"{used} of {senders} in use",
        "none is free for a base backup" if full else "",
        f"alter system set max_wal_senders = {senders + 5}; then restart" if full else "",
    )
    yield CheckRow(
        "rights",
        "may replicate" if may_replicate else "may not replicate",
        "" if may_replicate else "the role of database.admin can neither stream WAL nor take a base backup",
        "" if may_replicate else "alter role ... replication",
    )


def judge_summaries(setting: str | None) -> CheckRow:
    """Judge `summarize_wal`; None: the server has no such setting."""
    if setting is None:
        return CheckRow("summarize_wal", "unknown to this server", "incremental base backups need PostgreSQL 17")
    if setting == "on":
        return CheckRow("summarize_wal", setting)
    fault = "each base backup will be a full one (backup.database.base.full_every)"
    fix = "alter system set summarize_wal = on; select pg_reload_conf(); on both nodes"
    return CheckRow("summarize_wal", setting, fault, fix)


def _volume(data_dir: str | None) -> tuple[int, int] | None:
    """Return size and free space of the volume that WAL lies on; None where this host does not see it."""
    for path in (f"{data_dir}/pg_wal", data_dir) if data_dir else ():
        with contextlib.suppress(OSError):
            found = os.statvfs(path)
            return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return None


def judge_slot_limit(setting: str, limit_bytes: int, volume: tuple[int, int] | None) -> CheckRow:
    """Return the row of max_slot_wal_keep_size. limit_bytes: negative is none. volume: size and free space."""
    fault, wanted = "", wal_space(volume[0] if volume else _UNKNOWN_VOLUME).slot_bytes
    if limit_bytes < 0:
        fault = "a receiver that does not come fills the primary's disk until it stops"
    elif volume is not None and limit_bytes > volume[1]:
        fault = f"its disk has {volume[1] >> 20} MiB free: a receiver that does not come fills it"
        wanted = min(wanted, volume[1] // 2)
    fix = f"alter system set max_slot_wal_keep_size = '{max(64, wanted >> 20)}MB'; select pg_reload_conf()"
    return CheckRow("max_slot_wal_keep_size", setting, fault, fix if fault else "")


def check_standby_slots(stack: Stack, server_lsn: Lsn) -> Iterator[CheckRow]:
    """Yield a row for each standby: without a slot there, WAL that is not stored may be gone after a promotion."""
    for conninfo in wal_conninfos(stack):
        what = f"slot at {describe(conninfo)}"
        try:
            with connect(conninfo) as connection:
                slot = read_standby_slot(connection, SLOT)
        except SynapseOpsError as error:
            yield CheckRow(what, f"not asked: {error.message}")
            continue
        if slot.is_standby and slot.keeps_from is None:
            fault = "after a promotion WAL that is not stored yet may be gone"
            yield CheckRow(what, f"no slot {SLOT}", fault, f"{_START}; it makes the slot within a few seconds")
        elif slot.is_standby and slot.keeps_from is not None:
            yield CheckRow(what, f"{SLOT} keeps {max(0, server_lsn - slot.keeps_from)} bytes of WAL")


def judge_synchronous(found: Synchronous, escaping: Sequence[tuple[str, str]]) -> CheckRow:
    """Return the row of synchronous commits. escaping: whose commits do not wait, and their `synchronous_commit`."""
    fault = unprotected(found)
    fix = "start the WAL receiver and the standby; it waits for each one that streams" if fault else ""
    if found.off:
        fix = "synapse-ops wal sync on"
    if escaping and not fault:
        fault = "; ".join(f"commits of {who} do not wait: synchronous_commit = {value}" for who, value in escaping)
        fix = "alter role ... reset synchronous_commit, unless it is meant"
    return CheckRow("synchronous_standby_names", found.setting or "empty", fault, fix)


def check_archiver(connection: psycopg.Connection[Any]) -> Iterator[CheckRow]:
    """Yield the rows of a server whose archive_command is to hand WAL over."""
    with postgres_errors("the archiver of the primary"):
        [row] = connection.execute(_ARCHIVER).fetchall()
    mode, command, timeout_s, last_wal, failed_wal, failed_count = row
    wanted = "alter system set {}; then {}"
    off = mode == "off"
    fix = wanted.format("archive_mode = 'on'", "restart") if off else ""
    yield CheckRow("archiver", mode, "nothing is handed over" if off else "", fix)
    other = "wal push" not in command
    fix = wanted.format(f"archive_command = '{PUSH}'", "select pg_reload_conf()") if other else ""
    yield CheckRow("archive_command", command or "none", "WAL goes elsewhere, or nowhere" if other else "", fix)
    late = not 0 < timeout_s <= SEGMENT_S
    fix = wanted.format(f"archive_timeout = '{SEGMENT_S}s'", "select pg_reload_conf()") if late else ""
    fault = "a commit of a quiet hour waits until its segment is full" if late else ""
    yield CheckRow("archive_timeout", f"{timeout_s} s", fault, fix)
    said = f"last {last_wal or 'none'}, {failed_count} tries have failed"
    fault = f"{failed_wal} could not be handed over, and waits" if failed_wal is not None else ""
    yield CheckRow(
        "pg_stat_archiver", said, fault, "see the server's log: it has what `wal push` said" if fault else ""
    )


def _slot(connection: psycopg.Connection[Any]) -> CheckRow:
    with postgres_errors("the replication slots of the primary"):
        row = connection.execute(_SLOT, [SLOT]).fetchone()
    if row is None:
        return CheckRow("slot", f"no slot {SLOT}", "no receiver has ever connected", _START)
    active, status, safe_bytes = row
    said = f"{SLOT}: {'active' if active else 'not active'}, WAL {status}"
    if safe_bytes is not None:
        left_s = time_left_s(read_wal_pace(connection, SLOT))
        said += f", {safe_bytes // 2**20} MiB until it is lost"
        said += say_time_left(left_s, "at the present pace the store may be away for")
    if status == "lost":
        return CheckRow("slot", said, "WAL that is not stored is gone", "synapse-ops backup now cluster")
    return CheckRow("slot", said, "" if active else "no receiver is connected", "" if active else _START)


def _arrival(
    stack: Stack, connection: psycopg.Connection[Any], identity: Identity, progress: ReportProgress
) -> Iterator[CheckRow]:
    """Make a restore point, and wait until the repository holds it and gives it back."""
    name = f"synapse_ops_check_{secrets.token_hex(4)}"
    with postgres_errors("a restore point"):
        row = connection.execute(
            "SELECT lsn::text, left(pg_walfile_name(lsn), 8) FROM pg_create_restore_point(%s) AS lsn", [name]
        ).fetchone()
    if row is None:
        return
    if stack.spec.backup.database.wal_archiving == "command":
        with postgres_errors("the end of the segment"):
            connection.execute("SELECT pg_switch_wal()")
    lsn, timeline, begun = Lsn.parse(row[0]), int(row[1], 16), time.monotonic()
    repository, keys = stack.database_repository(), stack.age_identities()
    while True:
        archive = read_wal_archive(repository, identity)
        line = archive.find(timeline)
        waited_s = time.monotonic() - begun
        if line is not None and line.last_lsn is not None and line.last_lsn >= lsn:
            yield CheckRow("arrival", f"restore point {name} at {lsn} was in the repository after {waited_s:.1f} s")
            break
        if waited_s > WAIT_S:
            last = str(line.last_lsn) if line is not None else "nothing"
            yield CheckRow(
                "arrival",
                f"restore point at {lsn}; the repository holds {last} of timeline {timeline}",
                f"it did not arrive within {WAIT_S:.0f} s",
                "see what the receiver says: curl http://127.0.0.1:9110/health",
            )
            return
        progress(Progress("waiting for WAL to arrive", int(waited_s), int(WAIT_S), unit="s"))
        time.sleep(POLL_S)
    segment = Segment.at(timeline, Lsn(lsn.position - 1), line.segment_bytes)
    if stack.spec.encryption.recipients and not keys:
        yield CheckRow("readable", f"{segment.name}: not tried, no age key is at hand")
        return
    try:
        fetch_segment(
            repository, archive, segment, io.BytesIO(), history=archive.history(timeline), age_identities=keys
        )
    except SynapseOpsError as error:
        yield CheckRow("readable", segment.name, error.message, error.hint)
        return
    yield CheckRow("readable", f"{segment.name} was read back")
