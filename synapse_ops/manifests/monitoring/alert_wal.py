"""Alerts on WAL on its way into the repository: the receiver, what it stores, and the slots that wait for a reader."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.domain.backup.ages import WAL_PROMISE
from synapse_ops.domain.backup.kinds import BASE
from synapse_ops.domain.database.wal_space import wal_space
from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series
from synapse_ops.manifests.monitoring.promql import seconds
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.units import format_duration

SLOT_BYTES = 4 << 30  # WAL held back for somebody who does not come
_NODE = '{node="db-primary"}'
_MINUTE = timedelta(minutes=1)
_LEFT = "min(synapse_ops_wal_time_left_seconds)"
_UNTIL_LOST = (
    f'Some is lost in {{{{ with query "{_LEFT}" }}}}{{{{ . | first | value | humanizeDuration }}}}'
    "{{ else }}an unknown time{{ end }} at the present pace."
)


def slot_alerts(spec: Spec) -> Iterator[AlertRule]:
    """Yield the alerts on replication slots: WAL waits for a reader; soon the server will wait no longer."""
    retained, left = "synapse_ops_postgres_slot_retained_bytes", "synapse_ops_postgres_slot_left_bytes"
    limit = wal_space(spec.kubernetes.storage.database).slot_bytes
    reader, anew = "A standby or the WAL receiver", "the standby must be made anew, and "
    if spec.failover.standby is None:
        reader, anew = "The slot's reader", ""
    bound = min(SLOT_BYTES, limit * 2 // 5)
    yield AlertRule(
        name="WalLag",
        expr=f"max by (node) ({retained}) > {bound}",
        hold=timedelta(minutes=10),
        severity="warning",
        summary="{{ $value | humanize1024 }}B of WAL wait on {{ $labels.node }} for a reader of a slot",
        description=f"{reader} does not keep up or is gone; the WAL fills the primary's disk.",
        page="wal-lag",
        dashboard="database",
        proof=Proof(bad=(Series(retained + _NODE, bound + 1),), good=(Series(retained + _NODE, bound),)),
    )
    yield AlertRule(
        name="SlotNearlyLost",
        expr=f"min by (node) ({left}) < (min by (node) ({left}) + max by (node) ({retained})) / 4",
        hold=_MINUTE,
        severity="critical",
        summary="a slot on {{ $labels.node }} is lost after {{ $value | humanize1024 }}B more of WAL",
        description=f"Beyond max_slot_wal_keep_size {anew}WAL that is not stored is gone.",
        page="wal-lag",
        dashboard="database",
        proof=Proof(
            bad=(Series(left + _NODE, 24), Series(retained + _NODE, 76)),
            good=(Series(left + _NODE, 25), Series(retained + _NODE, 75)),
        ),
    )


def wal_alerts(spec: Spec) -> Iterator[AlertRule]:
    """Yield the alerts on the receiver. What it loses is remembered over its restarts, until a base backup is newer."""
    up, healthy = 'up{job="wal",instance="localhost:9110"}', "synapse_ops_wal_up"
    lag, gap = "synapse_ops_wal_lag_seconds", "synapse_ops_wal_gap_timestamp_seconds"
    promise = spec.objectives.rpo or WAL_PROMISE
    newest = f'synapse_ops_backup_timestamp_seconds{{repository="{BASE.word}"}}'
    base = newest.replace("}", f',subject="{BASE.word}"}}')
    lost = f"max(max_over_time({gap}[7d]))"
    yield AlertRule(
        name="WalReceiverDown",
        expr='absent(up{job="wal"} == 1)',
        hold=2 * _MINUTE,
        severity="critical",
        summary="no WAL receiver answers",
        description="What is committed now is lost if the server is lost; its WAL waits on the primary's disk.",
        page="wal-not-stored",
        dashboard="database",
        proof=Proof(bad=(Series(up, 0),), good=(Series(up, 1),)),
    )
    yield AlertRule(
        name="WalNotStored",
        expr=f"max({healthy}) == 0",
        hold=_MINUTE,
        severity="critical",
        summary="the WAL receiver does not get on",
        description="The server or the store does not answer it, or it refuses one of them. Its /health says which. "
        + _UNTIL_LOST,
        page="wal-not-stored",
        dashboard="database",
        proof=Proof(bad=(Series(healthy, 0),), good=(Series(healthy, 1),)),
    )
    yield AlertRule(
        name="WalStoredTooLate",
        expr=f"max({lag}) > {seconds(promise)}",
        hold=timedelta(0),
        severity="critical",
        summary="WAL waits for the store for {{ $value | humanizeDuration }}",
        description=f"At most {format_duration(promise)} of work may be lost with the server (objectives.rpo). "
        + _UNTIL_LOST,
        page="wal-not-stored",
        dashboard="database",
        proof=Proof(bad=(Series(lag, whole_seconds(promise) + 1),), good=(Series(lag, 0),)),
    )
    if spec.backup.database.wal.synchronous or spec.failover.synchronous == "standby":
        waits = "synapse_ops_wal_unprotected"
        yield AlertRule(
            name="CommitsNotProtected",
            expr=f"max({waits}) == 1",
            hold=_MINUTE,
            severity="critical",
            summary="commits do not wait as the spec wants, or wait for somebody who is away",
            description="Commits may be lost, or nothing is acknowledged: `synapse-ops wal sync` says which.",
            page="commits-not-protected",
            dashboard="database",
            proof=Proof(bad=(Series(waits, 1),), good=(Series(waits, 0),)),
        )
    yield AlertRule(
        name="WalLost",
        expr=f"{lost} unless {lost} < max({newest})",
        hold=timedelta(0),
        severity="critical",
        summary="WAL was lost to the repository: take a base backup now",
        description="No moment behind the gap can be restored from the base backups before it.",
        page="wal-not-stored",
        dashboard="database",
        proof=Proof(bad=(Series(gap, 100), Series(base, 99)), good=(Series(gap, 100), Series(base, 101))),
    )
