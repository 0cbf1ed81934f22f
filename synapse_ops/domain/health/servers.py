"""What servers say of themselves, judged: PostgreSQL, replication, Redis, Qdrant, certificates, disks.

Pure. Every limit stands here by name with its reason; the spec's own limits are passed in. A server that does not
answer at all never comes here: the probe's error is its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from synapse_ops.domain.health.states import ProbeVerdict, State

CONNECTIONS_RATIO = 0.8  # postgres_exporter's and pgwatch's usual warning
OLDEST_TRANSACTION_S = 3600.0  # it holds back vacuum; an hour is longer than any transaction of a service
XID_AGE_DEGRADED = 1.0e9  # five times autovacuum_freeze_max_age: autovacuum does not keep up
XID_AGE_FAILED = 1.9e9  # PostgreSQL stops taking writes 3 million before 2^31
CHECKSUM_RECENT = timedelta(days=1)
SLOT_RETAINED_BYTES = 4 * 1024**3  # WAL that a slot holds back fills the disk of the primary
ARCHIVE_WAITING_S = 900.0  # a finished segment is archived within seconds
REDIS_MEMORY_RATIO = 0.9  # of maxmemory, where nothing is evicted and writes are refused at the end
CERTIFICATE_DAYS = 14
CLOCK_SKEW_S = 300.0  # above it nothing expires (design of retention), and S3 refuses signatures at 15 minutes
# A share of the disk, for a small volume is not full from the beginning, but no more than these bytes: a tenth of a
# large one is plenty. Alerts are rendered from the same numbers.
DISK_FREE_RATIO, DISK_FREE_BYTES = 0.1, 10 * 1024**3
DISK_FULL_RATIO, DISK_FULL_BYTES = 0.05, 5 * 1024**3
INODES_FREE_RATIO = 0.05

Judged = tuple[State, str]


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot. wal_status: reserved, extended, unreserved or lost; None while it holds nothing.

    left_bytes: WAL that may be written until it is lost; None: without a bound, or lost.
    """

    name: str
    is_active: bool
    wal_status: str | None
    retained_bytes: float
    left_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server reports. Ages in seconds or transactions; times aware, of the server's clock."""

    is_standby: bool
    connections: int
    max_connections: int
    reserved_connections: int
    oldest_transaction_s: float
    oldest_xid_age: float
    oldest_multixact_age: float
    checksum_failures: float
    checksum_last_failure: datetime | None
    server_time: datetime
    slots: tuple[Slot, ...] = ()
    archive_fails: bool = False
    archive_waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WalPosition:
    """Where a server stands, in bytes since 0/0. position_bytes: written by a primary, replayed by a standby.

    receiver_status: "streaming" while WAL arrives; None on a primary, and on a standby that receives none.
    """

    is_standby: bool
    position_bytes: float
    received_bytes: float | None
    receiver_status: str | None
    replay_delay_s: float


def verdict_of(
    judged: Sequence[Judged], measurements: Mapping[str, float], latency_s: float | None = None
) -> ProbeVerdict:
    """Return the worst of several judgements with the reasons of that level, the first one first."""
    for level in (State.FAILED, State.UNKNOWN, State.DEGRADED):
        reasons = [reason for state, reason in judged if state is level]
        if reasons:
            return ProbeVerdict(level, "; ".join(reasons), latency_s, measurements)
    return ProbeVerdict(State.HEALTHY, "", latency_s, measurements)


def judge_server(facts: ServerFacts, *, is_alone: bool = False) -> ProbeVerdict:
    """Return the verdict on one PostgreSQL server by itself; replication is judged over all of them. is_alone: there is
    no other that could take writes.
    """
    judged: list[Judged] = []
    if is_alone and facts.is_standby:
        judged.append((State.FAILED, "it replays WAL and takes no writes, and failover.standby names no other node"))
    open_to_clients = facts.max_connections - facts.reserved_connections
    used = facts.connections / max(open_to_clients, 1)
    if facts.connections >= open_to_clients:
        judged.append((State.FAILED, f"{facts.connections} connections of {open_to_clients}: clients are turned away"))
    elif used >= CONNECTIONS_RATIO:
        limit = f"{CONNECTIONS_RATIO:.0%} of {open_to_clients} (max_connections)"
        judged.append((State.DEGRADED, f"{facts.connections} connections, limit {limit}"))
    if facts.oldest_transaction_s > OLDEST_TRANSACTION_S:
        age = f"{facts.oldest_transaction_s / 60:.0f} min"
        judged.append((State.DEGRADED, f"a transaction is {age} old, limit {OLDEST_TRANSACTION_S / 60:.0f} min"))
    judged += _wraparound("transaction ids", facts.oldest_xid_age)
    judged += _wraparound("multixact ids", facts.oldest_multixact_age)
    judged += _checksums(facts)
    judged += [found for slot in facts.slots for found in _slot(slot)]
    judged += _archiver(facts)
    left = [slot.left_bytes for slot in facts.slots if slot.left_bytes is not None]
    measurements = {
        "is_standby": float(facts.is_standby),
        "connections": float(facts.connections),
        "max_connections": float(facts.max_connections),
        "oldest_transaction_s": facts.oldest_transaction_s,
        "oldest_xid_age": facts.oldest_xid_age,
        "oldest_multixact_age": facts.oldest_multixact_age,
        "checksum_failures": facts.checksum_failures,
        "slot_retained_bytes": max((slot.retained_bytes for slot in facts.slots), default=0.0),
        **({"slot_left_bytes": min(left)} if left else {}),
        "archive_fails": float(facts.archive_fails),
        "archive_waiting_s": facts.archive_waiting_s,
    }
    return verdict_of(judged, measurements)


def _wraparound(what: str, age: float) -> list[Judged]:
    if age >= XID_AGE_FAILED:
        return [(State.FAILED, f"{what} wrap around: the oldest is {age / 1e6:.0f} million old of 2147")]
    if age >= XID_AGE_DEGRADED:
        return [(State.DEGRADED, f"the oldest of the {what} is {age / 1e6:.0f} million old, limit 1000")]
    return []


def _checksums(facts: ServerFacts) -> list[Judged]:
    if not facts.checksum_failures:
        return []
    last = facts.checksum_last_failure
    what = f"{facts.checksum_failures:.0f} pages failed their checksum"
    if last is None or facts.server_time - last < CHECKSUM_RECENT:
        return [
            (State.FAILED, f"{what}, the last at {last.isoformat(timespec='seconds') if last else 'a time unknown'}")
        ]
    return [(State.DEGRADED, f"{what}, the last at {last.isoformat(timespec='seconds')}")]


def _slot(slot: Slot) -> list[Judged]:
    if slot.wal_status in {"lost", "unreserved"}:
        return [(State.DEGRADED, f'slot "{slot.name}" is {slot.wal_status}: its consumer must start anew')]
    if slot.retained_bytes > SLOT_RETAINED_BYTES:
        held, limit = slot.retained_bytes / 1024**3, SLOT_RETAINED_BYTES / 1024**3
        return [(State.DEGRADED, f'slot "{slot.name}" holds back {held:.1f} GiB of WAL, limit {limit:.0f} GiB')]
    return []


def _archiver(facts: ServerFacts) -> list[Judged]:
    judged: list[Judged] = []
    if facts.archive_fails:
        judged.append((State.DEGRADED, "the archiver's last try failed: see last_failed_wal of pg_stat_archiver"))
    if facts.archive_waiting_s > ARCHIVE_WAITING_S:
        waits, limit = facts.archive_waiting_s / 60, ARCHIVE_WAITING_S / 60
        judged.append((State.DEGRADED, f"a WAL segment waits {waits:.0f} min for the archiver, limit {limit:.0f} min"))
    return judged


def judge_replication(positions: Mapping[str, WalPosition | str], *, max_lag_bytes: int) -> ProbeVerdict:
    """Return the verdict on all nodes together. positions: node -> where it stands, or why it did not answer.

    Failed: none takes writes, or two do. Degraded: a standby is away or further behind than `failover.max_lag_bytes`,
    so it would not be promoted.
    """
    known = {node: found for node, found in positions.items() if isinstance(found, WalPosition)}
    silent = {node: found for node, found in positions.items() if isinstance(found, str)}
    primaries = [node for node, found in known.items() if not found.is_standby]
    judged: list[Judged] = [(State.DEGRADED, f"{node} does not answer: {why}") for node, why in silent.items()]
    measurements = {"primaries": float(len(primaries)), "standbys": float(len(known) - len(primaries))}
    if len(primaries) > 1:
        judged.append((State.FAILED, f"{len(primaries)} nodes take writes: {', '.join(primaries)}"))
    elif not primaries:
        silence = "".join(f"; {node} does not answer: {why}" for node, why in silent.items())
        judged.append((State.FAILED, f"no node takes writes{silence}"))
    if len(primaries) == 1:
        written = known[primaries[0]].position_bytes
        for node, found in known.items():
            if found.is_standby:
                lag_bytes = max(0.0, written - found.position_bytes)
                measurements["lag_bytes"] = max(measurements.get("lag_bytes", 0.0), lag_bytes)
                measurements["lag_s"] = max(measurements.get("lag_s", 0.0), found.replay_delay_s)
                judged += _standby(node, found, lag_bytes, max_lag_bytes)
    return verdict_of(judged, measurements)


def _standby(node: str, found: WalPosition, lag_bytes: float, max_lag_bytes: int) -> list[Judged]:
    judged: list[Judged] = []
    if found.receiver_status != "streaming":
        judged.append((State.DEGRADED, f"{node} receives no WAL (receiver: {found.receiver_status or 'none'})"))
    if lag_bytes > max_lag_bytes:
        behind = f"{lag_bytes / 1024**2:.1f} MiB behind, limit {max_lag_bytes / 1024**2:g} MiB (failover.max_lag_bytes)"
        judged.append((State.DEGRADED, f"{node} is {behind}"))
    return judged


def judge_redis(info: Mapping[str, Any]) -> ProbeVerdict:
    """Return the verdict on the values of INFO."""
    judged: list[Judged] = []
    if info.get("role") != "master":
        link = f", link to its source {info.get('master_link_status', 'unknown')}"
        judged.append((State.DEGRADED, f"its role is {info.get('role')}: it takes no writes{link}"))
    limit, used = float(info.get("maxmemory") or 0), float(info.get("used_memory") or 0)
    policy = str(info.get("maxmemory_policy", ""))
    if limit and policy == "noeviction" and used >= REDIS_MEMORY_RATIO * limit:
        share = f"{used / limit:.0%} of maxmemory {limit / 1024**2:.0f} MiB is used"
        level = State.FAILED if used >= limit else State.DEGRADED
        judged.append((level, f"{share}, and the policy noeviction refuses writes at the end"))
    for key, what in (("rdb_last_bgsave_status", "its last snapshot"), ("aof_last_write_status", "its last log write")):
        if info.get(key, "ok") != "ok":
            judged.append((State.DEGRADED, f"{what} failed"))
    measurements = {
        "used_memory_bytes": used,
        "maxmemory_bytes": limit,
        "evicted_keys": float(info.get("evicted_keys") or 0),
        "rejected_connections": float(info.get("rejected_connections") or 0),
        "connected_clients": float(info.get("connected_clients") or 0),
    }
    return verdict_of(judged, measurements)


def judge_qdrant(ready_status: int, cluster: Mapping[str, Any] | None) -> ProbeVerdict:
    """Return the verdict on one node. cluster: `result` of GET /cluster; None where it could not be read.

    /readyz stays green when the consensus of a cluster has stopped, and every later change is refused: so both count.
    """
    judged: list[Judged] = []
    measurements: dict[str, float] = {}
    if not 200 <= ready_status < 300:
        judged.append((State.FAILED, f"/readyz answers {ready_status}"))
    if cluster is None:
        judged.append((State.DEGRADED, "/cluster could not be read"))
    elif cluster.get("status") == "enabled":
        thread = cluster.get("consensus_thread_status") or {}
        word = str(thread.get("consensus_thread_status", "unknown"))
        if word != "working":
            judged.append((State.FAILED, f"its consensus is {word}: {_first_line(thread.get('err'))}"))
        failures = cluster.get("message_send_failures") or {}
        if failures:
            judged.append((State.DEGRADED, f"messages to {len(failures)} peers fail"))
        measurements["peers"] = float(len(cluster.get("peers") or {}))
        measurements["pending_operations"] = float((cluster.get("raft_info") or {}).get("pending_operations") or 0)
    return verdict_of(judged, measurements)


def _first_line(text: object) -> str:
    return str(text or "no reason given").splitlines()[0][:160]


def judge_certificates(days_left: Mapping[str, float | str]) -> ProbeVerdict:
    """Return the verdict on certificates. days_left: whose -> days until it ends, or why it could not be read."""
    judged: list[Judged] = []
    for whose, days in days_left.items():
        if isinstance(days, str):
            judged.append((State.FAILED, f"{whose}: {days}"))
        elif days < 0:
            judged.append((State.FAILED, f"the certificate of {whose} ended {-days:.0f} days ago"))
        elif days < CERTIFICATE_DAYS:
            judged.append((State.DEGRADED, f"the certificate of {whose} ends in {days:.0f} days"))
    known = [days for days in days_left.values() if not isinstance(days, str)]
    return verdict_of(judged, {"certificate_days": min(known)} if known else {})


@dataclass(frozen=True, slots=True)
class DiskUse:
    """One file system, by the path that was asked. inodes_free_ratio: None where it has no fixed number of them."""

    path: str
    total_bytes: int
    free_bytes: int
    inodes_free_ratio: float | None

    @property
    def free_ratio(self) -> float:
        return self.free_bytes / max(self.total_bytes, 1)


def judge_disks(disks: Sequence[DiskUse]) -> ProbeVerdict:
    """Return the verdict on file systems."""
    judged: list[Judged] = []
    for disk in disks:
        free = f"{disk.free_bytes / 1024**3:.1f} GiB free ({disk.free_ratio:.0%}) where {disk.path} lies"
        if disk.free_bytes < min(disk.total_bytes * DISK_FULL_RATIO, DISK_FULL_BYTES):
            judged.append((State.FAILED, free))
        elif disk.free_bytes < min(disk.total_bytes * DISK_FREE_RATIO, DISK_FREE_BYTES):
            judged.append((State.DEGRADED, free))
        if disk.inodes_free_ratio is not None and disk.inodes_free_ratio < INODES_FREE_RATIO:
            judged.append((State.DEGRADED, f"{disk.inodes_free_ratio:.0%} of the inodes free where {disk.path} lies"))
    fullest = min(disks, key=lambda disk: disk.free_ratio, default=None)
    measured = {} if fullest is None else {"free_bytes": fullest.free_bytes, "size_bytes": fullest.total_bytes}
    return verdict_of(judged, {name: float(value) for name, value in measured.items()})


def judge_store(clock_skew_s: float | None) -> ProbeVerdict:
    """Return the verdict on a store that took, gave back and deleted an object."""
    judged: list[Judged] = []
    if clock_skew_s is not None and abs(clock_skew_s) > CLOCK_SKEW_S:
        judged.append(
            (State.DEGRADED, f"its clock differs from ours by {abs(clock_skew_s):.0f} s, limit {CLOCK_SKEW_S:.0f}")
        )
    return verdict_of(judged, {} if clock_skew_s is None else {"clock_skew_s": clock_skew_s})
