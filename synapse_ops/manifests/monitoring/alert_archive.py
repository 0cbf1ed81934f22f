"""Alerts on PostgreSQL's own archiver, for servers whose `archive_command` or `archive_library` stores WAL.

It waits without a sound: a command that fails is tried again for ever, while WAL piles up on the primary's disk and the
newest restorable moment stands still. Source: PostgreSQL docs, "Continuous Archiving", and pg_stat_archiver.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series

ARCHIVE_WAITING = timedelta(
    minutes=15
)  # a finished segment is archived within seconds; a store may be away for a while

_NODE = '{node="db-primary"}'
_FAILS = "synapse_ops_postgres_archive_fails"
_WAITS = "synapse_ops_postgres_archive_waiting_seconds"


def archive_alerts() -> Iterator[AlertRule]:
    """Yield the alerts: the last try failed; a finished segment waits too long, whatever the reason."""
    bound = int(ARCHIVE_WAITING.total_seconds())
    yield AlertRule(
        name="WalArchiveFails",
        expr=f"max by (node) ({_FAILS}) == 1",
        hold=timedelta(minutes=5),
        severity="critical",
        summary="{{ $labels.node }} cannot archive its WAL",
        description="Its archive_command fails: work since the last archived segment is not in the archive.",
        page="wal-archive",
        dashboard="database",
        proof=Proof(bad=(Series(_FAILS + _NODE, 1),), good=(Series(_FAILS + _NODE, 0),)),
    )
    yield AlertRule(
        name="WalArchiveTooOld",
        expr=f"max by (node) ({_WAITS}) > {bound}",
        hold=timedelta(minutes=5),
        severity="critical",
        summary="a WAL segment of {{ $labels.node }} waits to be archived for {{ $value | humanizeDuration }}",
        description="The archiver hangs, is too slow, or is off: the last archived moment is at least that old.",
        page="wal-archive",
        dashboard="database",
        proof=Proof(bad=(Series(_WAITS + _NODE, bound + 1),), good=(Series(_WAITS + _NODE, bound),)),
    )
