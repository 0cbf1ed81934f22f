"""The alerts about space: of the disks that the prober looks at, and of every file system that a node exporter sees.

In the cluster that is each store's volume, by the exporter beside the store. What is too little is what the prober's
own verdict says (domain/health/servers.py): a share of the disk, or that many bytes of a large one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

from synapse_ops.domain.health.servers import DISK_FREE_BYTES, DISK_FREE_RATIO, DISK_FULL_BYTES, DISK_FULL_RATIO
from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series, Severity
from synapse_ops.manifests.monitoring.promql import number
from synapse_ops.manifests.monitoring.recording_rules import FILE_SYSTEMS

_PROBED = ("synapse_ops_disk_free_bytes", "synapse_ops_disk_size_bytes")
_EXPORTED = (
    f"node_filesystem_avail_bytes{{{FILE_SYSTEMS}}}",
    f"node_filesystem_size_bytes{{{FILE_SYSTEMS}}}",
)
_MOUNT = '{job="node",instance="host:9100",device="sda",fstype="ext4",mountpoint="/"}'
_EXPORTED_SERIES = (f"node_filesystem_avail_bytes{_MOUNT}", f"node_filesystem_size_bytes{_MOUNT}")
_WHERE = "{{ $labels.mountpoint }} of {{ $labels.instance }}"


class _Least(NamedTuple):
    """How little free space fires: a share of the size, and never more than so many bytes."""

    ratio: float
    most_bytes: int


_FULL, _LOW = _Least(DISK_FULL_RATIO, DISK_FULL_BYTES), _Least(DISK_FREE_RATIO, DISK_FREE_BYTES)


def disk_alerts() -> Iterator[AlertRule]:
    """Yield what is said of disks."""
    yield _alert("DiskNearlyFull", "critical", _FULL, _PROBED, _PROBED, "a disk of Synapse Ops")
    yield _alert("FileSystemNearlyFull", "warning", _LOW, _EXPORTED, _EXPORTED_SERIES, _WHERE)
    yield _alert("FileSystemFull", "critical", _FULL, _EXPORTED, _EXPORTED_SERIES, _WHERE)


def _alert(
    name: str, severity: Severity, least: _Least, expr: tuple[str, str], series: tuple[str, str], where: str
) -> AlertRule:
    """expr, series: free space and size."""
    (free, size), (free_series, size_series) = expr, series
    limit = int(least.ratio * 1000)  # of 1000 bytes
    return AlertRule(
        name=name,
        expr=f"{free} < clamp_max({size} * {number(Decimal(str(least.ratio)))}, {least.most_bytes})",
        hold=timedelta(minutes=5 if severity == "critical" else 15),
        severity=severity,
        summary=f"{{{{ $value | humanize1024 }}}}B are left on {where}",
        description="Whatever lies on it stops when it is full: PostgreSQL, Redis and Qdrant take no more writes.",
        page="disk-nearly-full",
        dashboard="system",
        proof=Proof(
            bad=(Series(free_series, limit - 1), Series(size_series, 1000)),
            good=(Series(free_series, limit), Series(size_series, 1000)),
        ),
    )
