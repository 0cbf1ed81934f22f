"""BASE_BACKUP over a replication connection: tar archives and the manifest as they arrive, nothing staged.

`BASE_BACKUP` answers with where it starts, the tablespaces, one copy in which every message begins with a letter, and
where it stops. A server-compressed stream carries its manifest. Source: PostgreSQL documentation, "Streaming
Replication Protocol", BASE_BACKUP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import Unreachable
from synapse_ops.systems.postgres.replication import ReplicationConnection

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

WAIT_S = 60.0  # for one message: a checkpoint comes before the first, and takes longer
CHECKPOINT_S = 3600.0
MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class BaseBackupOptions:
    """label: in backup_label. max_rate_kb: KiB a second, 32 to 1048576; None: no limit. level: of zstd.

    compression: by the server; None where it cannot. waits: for its archiver, which we do not use. verifies: whether a
    page with a wrong checksum fails the backup, at its end. parent_manifest: of the backup since which changes alone
    are sent; None: everything is.
    """

    label: str
    fast_checkpoint: bool = True
    max_rate_kb: int | None = None
    compression: Literal["zstd", "gzip", "lz4"] | None = "zstd"
    level: int = 1
    verifies: bool = True
    parent_manifest: bytes | None = None

    def command(self) -> str:
        """Return the command; in the syntax of PostgreSQL 15 and later."""
        label = self.label.replace("'", "''")
        options = [f"LABEL '{label}'", "PROGRESS", f"CHECKPOINT '{'fast' if self.fast_checkpoint else 'spread'}'"]
        options += ["WAL false", "WAIT false", "TABLESPACE_MAP", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'SHA256'"]
        if self.max_rate_kb is not None:
            options.append(f"MAX_RATE {self.max_rate_kb:d}")
        if self.compression is not None:
            options += [f"COMPRESSION '{self.compression}'", f"COMPRESSION_DETAIL 'level={self.level:d}'"]
        if self.parent_manifest is not None:
            options.append("INCREMENTAL")
        if not self.verifies:
            options.append("VERIFY_CHECKSUMS false")
        return f"BASE_BACKUP ({', '.join(options)})"


@dataclass(frozen=True, slots=True)
class BackupPoint:
    """Where a base backup starts or stops."""

    lsn: Lsn
    timeline: int


@dataclass(frozen=True, slots=True)
class Tablespace:
    """oid, path: empty for the data directory. size_kb: as the server estimated it, None when it did not."""

    oid: str
    path: str
    size_kb: int | None


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar archive begins. name: base.tar or <oid>.tar, with the suffix of its compression."""

    name: str
    tablespace_path: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest begins."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of what began last, at most some 40 KiB."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Transferred:
    """How many bytes of the directory the server has read by now, of the sum of `Tablespace.size_kb`."""

    size_bytes: int


class BaseBackupStream:
    """One base backup. Iterate it to its end, then `stop` is known; leaving it earlier voids the backup."""

    def __init__(self, connection: ReplicationConnection, options: BaseBackupOptions) -> None:
        """Ask for it, and wait for the checkpoint. Raises PostgresRefused with the server's reason."""
        self._connection = connection
        self.stop: BackupPoint | None = None
        if options.parent_manifest is not None:
            self._upload(options.parent_manifest)
        connection.send(options.command())
        self.start = _point(self._result(CHECKPOINT_S))
        self.tablespaces = _tablespaces(self._result())
        self._result()  # the copy begins

    def __iter__(self) -> Iterator[Archive | Manifest | Data | Transferred]:
        """Yield everything in the server's order. Raises what the server ends it with, damaged pages included."""
        while (message := self._message()) is not None:
            kind = message[:1]
            if kind == b"d":
                yield Data(message[1:])
            elif kind == b"n":
                name, path, *_ = message[1:].split(b"\0")
                yield Archive(name.decode(), path.decode())
            elif kind == b"m":
                yield Manifest()
            elif kind == b"p":
                yield Transferred(struct.unpack_from(">Q", message, 1)[0])
            else:
                raise Unreachable(f"{self._connection.what} sent a message that is not known: {message[:24]!r}")
        self.stop = _point(self._result())
        while self._connection.next_result() is not None:
            pass

    def _upload(self, manifest: bytes) -> None:
        from psycopg.pq import ExecStatus

        connection = self._connection
        connection.send("UPLOAD_MANIFEST")
        if self._result().status != ExecStatus.COPY_IN:
            raise Unreachable(f"{connection.what} did not ask for the manifest that it was offered")
        for at in range(0, len(manifest), MESSAGE_BYTES):
            connection.pgconn.put_copy_data(manifest[at : at + MESSAGE_BYTES])
        connection.pgconn.put_copy_end()
        while connection.next_result() is not None:
            pass

    def _message(self) -> bytes | None:
        from psycopg import OperationalError

        connection = self._connection
        while True:
            try:
                found, message = connection.pgconn.get_copy_data(1)
            except OperationalError:
                raise connection.lost() from None
            if found > 0:
                return bytes(message or b"")
            if found == -1:
                return None
            self._wait(WAIT_S)

    def _result(self, timeout_s: float = WAIT_S) -> PGresult:
        while self._connection.pgconn.is_busy():
            self._wait(timeout_s)
        result = self._connection.next_result()
        if result is None:
            raise Unreachable(f"{self._connection.what} ended a base backup early")
        return result

    def _wait(self, timeout_s: float) -> None:
        if not self._connection.wait(timeout_s):
            raise Unreachable(f"{self._connection.what} sent nothing of a base backup for {timeout_s:g} s")


def base_backup(connection: ReplicationConnection, options: BaseBackupOptions) -> BaseBackupStream:
    """Begin a base backup of the server itself, WAL not included. The connection is taken until it has ended."""
    return BaseBackupStream(connection, options)


def _point(result: PGresult) -> BackupPoint:
    lsn, timeline = result.get_value(0, 0), result.get_value(0, 1)
    return BackupPoint(Lsn.parse((lsn or b"").decode()), int(timeline or b"0"))


def _tablespaces(result: PGresult) -> tuple[Tablespace, ...]:
    rows = []
    for row in range(result.ntuples):
        oid, path, size = (result.get_value(row, column) for column in range(3))
        rows.append(Tablespace((oid or b"").decode(), (path or b"").decode(), int(size) if size else None))
    return tuple(rows)
