"""A base backup member by member: each archive, and last the manifest, as a source of bytes that is read to its end.

Nothing is staged: the next member begins when the one before it has been read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import IntegrityError, SynapseOpsError
from synapse_ops.systems.postgres.connection import connect, conninfo_parts, describe, postgres_errors
from synapse_ops.systems.postgres.errors import PostgresRefused
from synapse_ops.systems.postgres.replication import ReplicationConnection, connect_replication
from synapse_ops.systems.postgres.replication_backup import (
    Archive,
    BackupPoint,
    BaseBackupOptions,
    BaseBackupStream,
    Data,
    Manifest,
    Tablespace,
    Transferred,
)

MANIFEST = "backup_manifest"
APPLICATION_NAME = "synapse-ops base backup"

_FILE = re.compile(r"(?:base|pg_tblspc/(\d+)/[^/]+)/(\d+)/(\d+)")
_RELATION = """
SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = pg_filenode_relation(%s::oid, %s::oid)"""

Event = Archive | Manifest | Data | Transferred


@dataclass
class Member:
    """One archive, or the manifest, as a file that is read once. is_read: to its end."""

    name: str
    _source: _Source
    is_read: bool = False

    def read(self, size: int = -1, /) -> bytes:
        """Return the server's next message whole, whatever `size`, at most some 40 KiB; empty at the end."""
        del size
        data = b"" if self.is_read else self._source.next_data()
        self.is_read = not data
        return data


@dataclass
class BaseBackup:
    """A base backup being sent. compression: of the archives. size_bytes: of the cluster, as the server estimates it.

    stop is known when `members` has ended.
    """

    compression: Literal["zstd:1", "none"]
    _stream: BaseBackupStream
    _progress: ReportProgress

    @property
    def start(self) -> BackupPoint:
        return self._stream.start

    @property
    def stop(self) -> BackupPoint | None:
        return self._stream.stop

    @property
    def tablespaces(self) -> tuple[Tablespace, ...]:
        """Those beside the data directory."""
        return tuple(space for space in self._stream.tablespaces if space.path)

    @property
    def size_bytes(self) -> int:
        return sum(space.size_kb or 0 for space in self._stream.tablespaces) * 1024

    def members(self) -> Iterator[Member]:
        """Yield each archive by the server's name (`base.tar.zst`, `16384.tar.zst`), and last `backup_manifest`.

        Raises what the server says: a page with a wrong checksum ends the backup after its last archive.
        """
        source = _Source(iter(self._stream), self.size_bytes, self._progress)
        while (begun := source.next_member()) is not None:
            member = Member(begun.name if isinstance(begun, Archive) else MANIFEST, source)
            yield member
            while not member.is_read:
                member.read()


@dataclass
class _Source:
    """The events of a stream. held: the one that ended a member."""

    events: Iterator[Event]
    size_bytes: int
    progress: ReportProgress
    held: list[Archive | Manifest] = field(default_factory=list)

    def next_member(self) -> Archive | Manifest | None:
        if self.held:
            return self.held.pop()
        self.next_data()
        return self.held.pop() if self.held else None

    def next_data(self) -> bytes:
        for event in self.events:
            if isinstance(event, Data):
                return event.data
            if isinstance(event, Transferred):
                self.progress(Progress("copying the cluster", min(event.size_bytes, self.size_bytes), self.size_bytes))
                continue
            self.held.append(event)
            break
        return b""


@contextmanager
def base_backup(
    conninfo: str,
    *,
    label: str,
    max_rate_kb: int | None = None,
    parent_manifest: bytes | None = None,
    progress: ReportProgress = ignore_progress,
) -> Iterator[BaseBackup]:
    """Yield a base backup of the cluster, without its WAL, from a fast checkpoint on.

    conninfo: of a role that may replicate. max_rate_kb: KiB a second, 32 to 1,048,576; None is no limit.
    parent_manifest: of an earlier backup; then what changed since alone is sent. The archives are compressed by the
    server where it can. Raises Unreachable, ConfigError (refused), PostgresRefused, and IntegrityError with the pages
    whose checksums are wrong.
    """
    with connect_replication(conninfo, application_name=APPLICATION_NAME) as connection:
        options = BaseBackupOptions(label, max_rate_kb=max_rate_kb, parent_manifest=parent_manifest)
        try:
            stream = BaseBackupStream(connection, options)
        except PostgresRefused as error:
            if "zstd" not in f"{error.message} {error.detail}".lower():
                raise
        else:
            with _damage_named(connection, conninfo):
                yield BaseBackup("zstd:1", stream, progress)
            return
    with connect_replication(conninfo, application_name=APPLICATION_NAME) as connection:
        options = replace(options, compression=None)
        with _damage_named(connection, conninfo):
            yield BaseBackup("none", BaseBackupStream(connection, options), progress)


@contextmanager
def _damage_named(connection: ReplicationConnection, conninfo: str) -> Iterator[None]:
    """Say which pages and relations are damaged where the server ended a base backup because of wrong checksums."""
    try:
        yield
    except IntegrityError as error:
        pages = [one for one in connection.warnings if "checksum" in one]
        if not pages:
            raise
        raise IntegrityError(
            f"{describe(conninfo)} has pages with wrong checksums: no base backup can be made",
            detail="\n".join([*pages, *(f"{name}: damaged" for name in relations_of(pages, conninfo))]),
            hint="Keep the proven backups, and look at disk and memory of the server. REINDEX mends an index; restore a"
            " table to a moment before the damage and copy it back. Then take the base backup again.",
        ) from error


def relations_of(lines: Sequence[str], conninfo: str) -> list[str]:
    """Return the relations whose files the server names, as far as it can say; `database.schema.relation`."""
    from psycopg.conninfo import make_conninfo

    files = dict.fromkeys(found.groups() for line in lines if (found := _FILE.search(line)) is not None)
    names = []
    for space, database, node in files:
        with suppress(SynapseOpsError):
            with connect(conninfo) as session, postgres_errors("a damaged file"):
                row = session.execute("SELECT datname::text FROM pg_database WHERE oid = %s", [database]).fetchone()
            own = {**conninfo_parts(conninfo), **({"dbname": row[0]} if row is not None else {})}
            with connect(make_conninfo("", **own)) as session, postgres_errors("a damaged file"):
                row = session.execute(_RELATION, [space or 0, node]).fetchone()
            names += [f"{own['dbname']}.{row[0]}"] if row is not None and row[0] is not None else []
    return names
