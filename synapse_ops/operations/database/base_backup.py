"""A base backup of the whole cluster into the repository: streamed as the server sends it, nothing staged on disk.

It is listed only when the WAL from its start to its stop is in the repository too, for without it no copy becomes
consistent: until then it waits, with its heartbeat, and a receiver that does not come within `WAL_WAIT_S` ends it.
Where WAL goes there by archive_command, its last segment is ended for that.
Where the spec has a standby, its rows at one position behind the copy are stored beside it, for the proof to compare.
A page whose checksum is wrong ends it as well: the server says so after its last byte, and nothing is listed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.base_record import BaseRecord, ClusterSource, Incremental, TablespaceRecord
from synapse_ops.domain.backup.layout import KIND_BASE
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import missing
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import DeadlineExceeded, LeaseLost, Refused, SynapseOpsError
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.reading import hold_for_reading
from synapse_ops.operations.backup.taking import NOT_ENCRYPTED, BackupReport, Taking, identity_fields, taking_backup
from synapse_ops.operations.database.base_parent import Parent, choose_parent
from synapse_ops.operations.database.base_source import BaseSource, primary_source, standby_source
from synapse_ops.operations.database.exact_position import FINGERPRINT, read_standby
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.wal_source import SLOT, names_standby, primary_conninfo
from synapse_ops.systems.postgres.base_backup import MANIFEST, BaseBackup, Member, base_backup
from synapse_ops.systems.postgres.connection import at_its_server, connect, describe, postgres_errors
from synapse_ops.systems.postgres.errors import PostgresRefused
from synapse_ops.systems.postgres.identity import (
    commit_nothing,
    ensure_identity,
    list_databases,
    read_facts,
    read_moment,
)

if TYPE_CHECKING:
    import psycopg

    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.backup.lease import Lease
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack
    from synapse_ops.systems.postgres.identity import ServerFacts

SUBJECT = "cluster"
WAL_WAIT_S = 600.0
RECEIVER_WAIT_S = 20.0
POLL_S = 0.5
FRESH = timedelta(minutes=1)  # WAL that was stored so lately has a receiver, which connects again by itself

_ACTIVE = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active"

_ARCHIVES = "SELECT 1 WHERE current_setting('archive_mode') <> 'off'"

_CLUSTER = """
SELECT (SELECT catalog_version_no FROM pg_control_system()), current_setting('block_size')::int,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')"""


class WalDidNotArrive(DeadlineExceeded):
    """The copy was made, and its WAL is not in the repository: another copy would wait for it as well."""


@dataclass(frozen=True, slots=True)
class BaseReport(BackupReport):
    """A base backup that exists."""

    record: BaseRecord


def take_base_backup(
    stack: Stack, subject: str = SUBJECT, *, set_id: str | None = None, progress: ReportProgress = ignore_progress
) -> BaseReport:
    """Take a base backup of the cluster and return it once it exists. Each call is a new backup.

    It is copied from the spec's standby; where that cannot be, or a promotion or the loss of the node voids the copy,
    from the primary, and a warning says why.
    Raises Refused (`database.admin` is a standby), LeaseHeld, Unreachable, PostgresRefused, IntegrityError, and
    DeadlineExceeded where its WAL does not arrive; after any of them the backup is not listed.
    """
    repository = stack.database_repository()
    conninfo = primary_conninfo(stack, "postgres")
    with connect(conninfo) as connection:
        conninfo = at_its_server(connection, conninfo)
        facts = read_facts(connection)
        facts.require_supported()
        identity = ensure_identity(connection)
        if facts.is_standby:
            raise Refused(
                f"{describe(conninfo)} is a standby: a base backup needs the primary beside it",
                hint="database.admin in the spec must name the primary, or both with target_session_attrs=read-write.",
            )
        _require_receiver(connection, repository, identity, by_command=_by_command(stack))
        with hold_lease(repository, f"base-{identity}", owner=f"base backup of {describe(conninfo)}") as lease:
            parent, warning = choose_parent(stack, repository, identity, facts, datetime.now(UTC))
            taker = _Taker(stack, repository, connection, facts, identity, lease, set_id, progress, parent, warning)
            if not names_standby(stack):
                return taker.take(primary_source(conninfo))
            try:
                with standby_source(stack, connection, identity) as source:
                    return taker.take(source)
            except (WalDidNotArrive, LeaseLost):
                raise
            except SynapseOpsError as error:
                why = "; ".join(filter(None, [error.message, *error.detail.splitlines()[:1]]))
                return taker.take(
                    primary_source(conninfo), warning=f"taken from the primary, not from the standby: {why}"
                )


@dataclass(frozen=True)
class _Taker:
    """Takes base backups of one cluster. connection: with its primary."""

    stack: Stack
    repository: Repository
    connection: psycopg.Connection[Any]
    facts: ServerFacts
    identity: Identity
    lease: Lease
    set_id: str | None
    progress: ReportProgress
    parent: Parent | None
    warning: str

    def take(self, server: BaseSource, warning: str = "") -> BaseReport:
        """Take one from this server."""
        connection, facts, measured = self.connection, self.facts, Measured()
        max_rate = self.stack.spec.backup.database.base.max_rate
        with taking_backup(
            self.stack, self.repository, KIND_BASE, self.identity, SUBJECT, set_id=self.set_id
        ) as taking:
            with postgres_errors("the cluster's facts"):
                row = connection.execute(_CLUSTER).fetchone()
            if row is None:
                raise Refused("the server said nothing of its cluster")
            started = read_moment(connection)
            objects = []
            begin = partial(
                base_backup,
                server.conninfo,
                label=f"synapse-ops {taking.place.backup_id}",
                max_rate_kb=None if max_rate is None else max_rate >> 10,
                progress=self.progress,
            )
            with measured.phase("copy"), ExitStack() as opened:
                stream, parent, refused = self._begin(begin, opened)
                server.require_start(stream.start.lsn)
                for member in stream.members():
                    hashed = _Hashed(member)
                    objects.append(taking.writer.write_stream(member.name, hashed))
            stopped = read_moment(connection)
            if stream.stop is None or stream.stop.timeline != stream.start.timeline:
                raise Refused(
                    f"the base backup began on timeline {stream.start.timeline} and did not end there",
                    hint="The server was promoted meanwhile: take another.",
                )
            with measured.phase("read_back"):
                taking.writer.read_back()
            with measured.phase("fingerprint"):
                standby = read_standby(self.stack, self.identity, stream.stop.lsn, self.progress)
            if standby.document is not None:
                objects.append(taking.writer.write_bytes(FINGERPRINT, standby.document))
            until = commit_nothing(connection) if standby.exact is not None else stream.stop.lsn
            if _by_command(self.stack):
                with postgres_errors("the end of the segment"):
                    connection.execute("SELECT pg_switch_wal()")
            with measured.phase("wait_for_wal"):
                _wait_for_wal(taking, stream.start.timeline, stream.start.lsn, until, self.progress)
            catalog_version, block_size, wal_segment_bytes = row
            record = BaseRecord(
                **taking.shared_fields(objects, phase_s=measured.phase_s, tool_versions={"postgres": facts.version}),
                source=ClusterSource(
                    **identity_fields(taking.place),
                    server_version=facts.version,
                    server_version_num=facts.version_num,
                    node=server.node,
                    is_standby=server.is_standby,
                    cluster_size_bytes=stream.size_bytes,
                    bootstrap_role=facts.bootstrap_role,
                    catalog_version=catalog_version,
                    block_size=block_size,
                    wal_segment_bytes=wal_segment_bytes,
                    databases=list_databases(connection),
                ),
                start_lsn=str(stream.start.lsn),
                stop_lsn=str(stream.stop.lsn),
                timeline=stream.start.timeline,
                started_time=started.database_time,
                stopped_time=stopped.database_time,
                compression=stream.compression,
                tablespaces=tuple(
                    TablespaceRecord(oid=int(space.oid), location=space.path) for space in stream.tablespaces
                ),
                dumped_bytes=sum(one.plain_size_bytes or 0 for one in objects),
                fingerprint_digest=hashed.sha256.hexdigest(),  # of the manifest, which comes last
                exact=standby.exact,
                incremental=None if parent is None else Incremental(chain=parent.ids, files_bytes=hashed.files_bytes()),
            )
            self.lease.check()
            taking.seal(record)
        not_encrypted = "" if record.encryption_recipients else NOT_ENCRYPTED
        warnings = tuple(
            filter(None, [*self.lease.warnings, self.warning, refused, warning, standby.warning, not_encrypted])
        )
        return BaseReport(record, taking.place, taking.url, warnings)

    def _begin(
        self, begin: Callable[..., AbstractContextManager[BaseBackup]], opened: ExitStack
    ) -> tuple[BaseBackup, Parent | None, str]:
        """Ask for what changed since the parent, or for everything where there is none or the server refuses.

        A server without the summaries of WAL that it takes cannot say what changed. Also return why it refused.
        """
        parent = self.parent
        if parent is None:
            return opened.enter_context(begin()), None, ""
        opened.enter_context(hold_for_reading(self.repository, parent.place, "base backup"))
        try:
            return opened.enter_context(begin(parent_manifest=parent.manifest)), parent, ""
        except PostgresRefused as error:
            why = "; ".join(filter(None, [error.message, *error.detail.splitlines()[:1]]))
            return opened.enter_context(begin()), None, f"a full one, for the server refused an incremental one: {why}"


def _by_command(stack: Stack) -> bool:
    return stack.spec.backup.database.wal_archiving == "command"


def _require_receiver(
    connection: psycopg.Connection[Any], repository: Repository, identity: Identity, *, by_command: bool
) -> None:
    """Raise Refused where nobody stores WAL: the copy would be made, and never become a backup.

    A receiver that was started just now is waited for. by_command: the server's archiver hands WAL over.
    """
    if by_command:
        with postgres_errors("the settings of the primary"):
            if connection.execute(_ARCHIVES).fetchone() is not None:
                return
        raise Refused(
            "archive_mode is off, and a base backup without its WAL cannot be restored",
            detail="backup.database.wal_archiving is command",
            hint="`synapse-ops check` says how to turn it on.",
        )
    deadline = time.monotonic() + RECEIVER_WAIT_S
    while True:
        with postgres_errors("the replication slots of the primary"):
            if connection.execute(_ACTIVE, [SLOT]).fetchone() is not None:
                return
        archive = read_wal_archive(repository, identity)
        stored_at = archive.stored_at
        if stored_at is not None and archive.read_at - stored_at <= FRESH:
            return
        if time.monotonic() > deadline:
            raise Refused(
                "no WAL receiver is connected, and a base backup without its WAL cannot be restored",
                detail=f"slot {SLOT} is not active; newest WAL: {stored_at.isoformat() if stored_at else 'none'}",
                hint="Start one (docs/wal.md), or set backup.database.wal_archiving to off; see `synapse-ops check`.",
            )
        time.sleep(POLL_S)


class _Hashed:
    """Hashes the plain bytes that pass, and keeps those of the manifest."""

    def __init__(self, source: Member) -> None:
        self._source = source
        self._manifest = bytearray()
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self.sha256.update(data)
        if self._source.name == MANIFEST:
            self._manifest += data
        return data

    def files_bytes(self) -> int:
        """Return how large all files are that the manifest names."""
        return sum(int(file["Size"]) for file in json.loads(bytes(self._manifest))["Files"])


def _wait_for_wal(taking: Taking, timeline: int, start: Lsn, stop: Lsn, progress: ReportProgress) -> None:
    """Return when the WAL from start to stop is stored. Raises WalDidNotArrive when it does not."""
    deadline = time.monotonic() + WAL_WAIT_S
    repository, identity = taking.stack.database_repository(), taking.place.identity
    while True:
        archive = read_wal_archive(repository, identity)
        is_known = archive.find(timeline) is not None
        gaps = missing(archive, archive.history(timeline), start, stop) if is_known else ()
        lacking = sum(gap.size_bytes for gap in gaps) if is_known else stop - start
        if not lacking:
            return
        taking.heartbeat.raise_if_lost()
        progress(Progress("waiting for WAL", stop - start - lacking, stop - start))
        if time.monotonic() > deadline:
            raise WalDidNotArrive(
                f"the WAL of this base backup, {start} to {stop}, did not arrive within {WAL_WAIT_S:g} s",
                detail=f"missing: {', '.join(map(str, gaps)) or f'everything of timeline {timeline}'}",
                hint="Is the WAL receiver running? `synapse-ops health` shows it.",
            )
        time.sleep(POLL_S)
