"""An RDB snapshot of a Redis server into the repository, over the wire.

Order, each step before the next: the lease, `started.json`, the heartbeat; a reading of live keys; the server forks,
which is the cut, and its file is streamed into the store; a second reading; the documents; `backup.json` last.
Whether the server wrote anything between the cut and the second reading is visible in its own stream of writes: its
position is that of the cut, or it is not.

Identity. A Redis server keeps no number that lasts as its data does: a run id changes with each start, a replication id
with each promotion. So both halves are derived from its address, and of one on this host from the host's name, too: a
server that moves to another address begins anew, and what it left is kept by the rules, like any other's.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from synapse_ops.domain.backup.layout import KIND_RDB, Identity
from synapse_ops.domain.backup.rdb_record import RdbRecord, RdbWindow, RedisSource
from synapse_ops.domain.cleanup.cache import busy_with
from synapse_ops.domain.progress import ReportProgress, ignore_progress
from synapse_ops.domain.redis.fingerprint import ALL_KEYS_LIMIT, KeyFingerprint, KeyReading
from synapse_ops.errors import Refused, Unreachable
from synapse_ops.operations.backup.lease import hold_lease
from synapse_ops.operations.backup.measured import Measured
from synapse_ops.operations.backup.taking import NOT_ENCRYPTED, BackupReport, Taking, identity_fields, taking_backup
from synapse_ops.systems.redis.keys import Keys, all_keys, choose_keys, read_keys
from synapse_ops.systems.redis.replication import rdb_stream
from synapse_ops.systems.redis.server import RedisServer, redis_of

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

RDB, FINGERPRINT = "dump.rdb", "fingerprint.json"
_THIS_HOST = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104 - compared, never bound


@dataclass(frozen=True, slots=True)
class RdbReport(BackupReport):
    """A backup that exists."""

    record: RdbRecord


def snapshot_redis(stack: Stack, *, set_id: str | None = None, progress: ReportProgress = ignore_progress) -> RdbReport:
    """Take an RDB snapshot of the spec's Redis and return the backup once it exists. Each call is a new backup.

    Raises ConfigError (`backup.redis` is off; our user may not replicate), Refused (a node of a cluster, a replica
    without its primary), LeaseHeld, Unreachable; after any of them the backup is not listed.
    """
    repository = stack.redis_repository()
    owner = f"snapshot of Redis on {socket.gethostname()}, pid {os.getpid()}"
    with closing(redis_of(stack.spec.redis)) as server:
        info = server.info()
        _refuse_unfit(server, info)
        identity = identity_of(server.location)
        with (
            hold_lease(repository, f"rdb-{identity}", owner=owner) as lease,
            taking_backup(stack, repository, KIND_RDB, identity, server.location, set_id=set_id) as taking,
        ):
            record = _Reading(taking, server, info, progress).take()
            lease.check()
            taking.seal(record)
    return RdbReport(record, taking.place, taking.url, (*lease.warnings, *_warnings(record, info)))


def identity_of(location: str) -> Identity:
    """Return whose snapshots those of a server are; `localhost` is another server on every host."""
    host = location.rpartition(":")[0]
    where = f"{socket.gethostname()} {location}" if host in _THIS_HOST or location.startswith("/") else location
    digest = hashlib.sha256(f"redis {where}".encode()).digest()
    return Identity(str(int.from_bytes(digest[:8])), digest[8:12].hex())


def _refuse_unfit(server: RedisServer, info: Mapping[str, Any]) -> None:
    if info.get("cluster_enabled"):
        raise Refused(
            f"cannot take a snapshot of Redis {server.address}: it is a node of a cluster, with a part of the keys",
            hint="All primaries would need one common moment; use the snapshots of the service that runs the cluster.",
        )
    if info.get("role") == "slave" and info.get("master_link_status") != "up":
        raise Refused(
            f"could not take a snapshot of Redis {server.address}: it is a replica without its primary",
            detail=f"master_link_status is {info.get('master_link_status')}",
            hint="Its data may be old. Name the primary in redis.host.",
        )
    if info.get("loading"):
        raise Unreachable(f"Redis {server.address} is {busy_with(info)}", hint="Try again when it has.")


@dataclass
class _Reading(Measured):
    """One snapshot on its way."""

    taking: Taking
    server: RedisServer
    info: Mapping[str, Any]
    progress: ReportProgress
    scope: Literal["all", "sample"] = "all"
    chosen: Keys = field(default_factory=dict)

    def take(self) -> RdbRecord:
        writer = self.taking.writer
        opened_at = datetime.now(UTC)
        with self.phase("read"):
            before = self._read(is_first=True)
        with self.phase("send"), rdb_stream(self.server) as stream:
            cut_at = datetime.now(UTC)
            dump = writer.write_stream(RDB, stream, before_complete=self.taking.heartbeat.raise_if_lost)
        with self.phase("read"):
            after = self._read(is_first=False)
        at_end = self.server.info()
        is_idle = (at_end.get("master_replid"), at_end.get("master_repl_offset")) == (
            stream.replication_id,
            stream.replication_offset,
        )
        closed_at = datetime.now(UTC)
        fingerprint = KeyFingerprint.of(self.scope, before, after, is_idle=is_idle)
        objects = (dump, writer.write_bytes(FINGERPRINT, fingerprint.to_json()))
        version = str(self.info["redis_version"])
        return RdbRecord(
            **self.taking.shared_fields(objects, phase_s=self.phase_s, tool_versions={"redis": version}),
            source=RedisSource(
                **identity_fields(self.taking.place),
                address=self.server.location,
                server_version=version,
                role=str(self.info["role"]),
                replication_id=stream.replication_id,
                replication_offset=stream.replication_offset,
                rdb_version=stream.rdb_version,
                memory_bytes=int(at_end.get("used_memory_dataset") or at_end["used_memory"]),
            ),
            window=RdbWindow(
                opened_at=opened_at,
                cut_at=cut_at,
                closed_at=closed_at,
                is_idle=is_idle,
                scope=self.scope,
                keys_before=dict(before.counts),
                keys_after=dict(after.counts),
                read_keys=len(fingerprint.names),
                moved_keys=len(fingerprint.moved),
            ),
            dumped_bytes=stream.size_bytes,
            fingerprint_digest=fingerprint.digest(),
        )

    def _read(self, *, is_first: bool) -> KeyReading:
        """Read all keys, listed anew each time; or those of the sample that the first reading drew."""
        if is_first:
            sample = self.taking.stack.spec.proof.sample_points
            self.scope, self.chosen = choose_keys(self.server, most=ALL_KEYS_LIMIT, sample=sample)
        elif self.scope == "all":
            self.chosen = all_keys(self.server)
        return read_keys(self.server, self.chosen, progress=self.progress)


def _warnings(record: RdbRecord, info: Mapping[str, Any]) -> Iterator[str]:
    if not record.encryption_recipients:
        yield NOT_ENCRYPTED
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and int(info.get("maxmemory", 0)):
        yield f"maxmemory-policy is {policy}: Redis itself removes keys when memory is short, any of them"
    if record.source.role != "master":
        yield "taken from a replica, which may be behind its primary"
    if record.window.scope == "sample":
        yield f"compared by a sample: {record.window.read_keys} of {sum(record.window.keys_before.values())} keys"
