"""What all assets share: owners, groups, pools, time limits, freshness, and the version of the code behind a number.

Two lists live here, and tests read both: which assets have a freshness policy, and which have none and why.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

import dagster as dg

from synapse_ops.defs.run_pods import REPORT, RunPod, pod_tags
from synapse_ops.domain.backup.kinds import KINDS
from synapse_ops.domain.recovery.recovery_record import STEPS

OWNERS = ["team:operations"]

GROUP_SPEC = "spec"
GROUP_MANIFESTS = "manifests"
GROUP_DATABASE = "database"
GROUP_VECTORS = "vectors"
GROUP_REDIS = "redis"
GROUP_RECOVERY = "recovery"
GROUP_HEALTH = "health"
GROUP_CLEANUP = "cleanup"

POOL_POSTGRES_IO = "postgres-io"  # one dump or proof of one at a time on a host; a restore does not wait for them
POOL_QDRANT_IO = "qdrant-io"  # one snapshot or proof of vectors at a time on a host
POOL_REDIS_IO = "redis-io"  # one snapshot or proof of Redis at a time on a host
POOL_CLEANUP = "cleanup"  # one cleanup at a time on a host
POOL_REPOSITORY_DELETE = "repository-delete"  # one deletion at a time in a repository

LANE_REPORT = "report"  # plans, reports, renderings, records: short, and nobody waits for them
LANE_REMOVAL = "removal"
PRIORITY_RESTORE, PRIORITY_BACKUP, PRIORITY_BASE, PRIORITY_PROOF, PRIORITY_REPORT = 4, 3, 2, 1, 0

TAG_TRIGGER = "synapse/trigger"  # schedule, sensor, launchpad, demo
TAG_BACKUP_ID = "synapse/backup_id"
TAG_SET_ID = "synapse/set_id"
TAG_LANE = "synapse/lane"

TABLE_ROWS = 200  # what a metadata table shows; totals stand beside it, the whole is in the repository

MANIFESTS = (
    *("dockerfile", "compose_file", "kubernetes_manifests", "prober_config", "postgres_config", "redis_config"),
    "qdrant_config",
    *("prometheus_config", "alert_rules", "alertmanager_config", "grafana_dashboards", "logstash_pipeline"),
    *("filebeat_config", "index_template", "logrotate_rules", "firewall_rules", "tls_config", "manifest_release"),
)

# assets without a clock, and the reason; a new asset must have a policy or stand here
WITHOUT_FRESHNESS = {
    "active_alerts": "no alert for a month is good news; Watchdog notices when alerts stop coming",
    "wal_archive": "the check wal_is_stored judges it in minutes, and is red when nobody can say",
    **dict.fromkeys(STEPS, "no recovery for years is good news; recovery_drill keeps the way back tried"),
    "failover_record": "no incident for months is good news; the check failover_is_armed judges what would happen",
    **dict.fromkeys(
        ("failover_drill", "recovery_drill"),
        "the check drills_meet_objectives judges each: 35 days, and a failed one at once",
    ),
    "infrastructure_file": "an operator edits it when there is a reason to, not on a schedule",
    "spec/*": "changes when the operator changes the file; spec_loaded_equals_file watches that it is loaded",
    **dict.fromkeys(
        (kind.retention_asset for kind in KINDS.values()),
        "deletes only what a plan names, and a plan may rightly name nothing for months",
    ),
    **dict.fromkeys(
        (name for kind in KINDS.values() for name in (kind.backup_asset, kind.proof_asset)),
        "one good partition would keep a late one green: backup_age and proof_age judge each by itself",
    ),
    "log_retention_set": "removes only what a plan names, which may be nothing",
    "temp_cleanup": "removes only what a plan names, which may be nothing",
    "cache_cleanup": "removes only what a plan names, which may be nothing",
    "snapshot_cleanup": "removes only what a plan names, which may be nothing",
    "run_history_cleanup": "removes only what a plan names, which may be nothing",
    **dict.fromkeys(MANIFESTS, "rendered anew when a block of the spec that it reads, or its renderer, changes"),
}


def run_tags(
    limit: timedelta, *, lane: str = "", priority: int = PRIORITY_REPORT, pod: RunPod | None = None
) -> dict[str, str]:
    """Return the tags that place a run in the queue, and end it after `limit`: a hung one would hold its pool for ever.

    lane: dagster.yaml lets two runs of each lane go at a time, so that all together never fill the queue's bound.
    "": in no lane, for what a person waits for. pod: where each run is a pod; None: a small one in the
    lanes of reports and removals, else what run-launcher.yaml says.
    """
    seconds = str(int(limit.total_seconds()))
    pod = pod or (REPORT if lane in {LANE_REPORT, LANE_REMOVAL} else None)
    return {
        "dagster/max_runtime": seconds,
        "dagster/priority": str(priority),
        **({TAG_LANE: lane} if lane else {}),
        **(pod_tags(pod) if pod else {}),
    }


def freshness_of(longest_gap: timedelta) -> dg.FreshnessPolicy:
    """Return a policy for what a schedule makes: it warns when a tick came to nothing, and fails an hour later.

    longest_gap: between two ticks of the schedule. An hour more covers a change of clock and the work itself.
    """
    return dg.FreshnessPolicy.time_window(
        warn_window=longest_gap + timedelta(hours=1), fail_window=longest_gap + timedelta(hours=2)
    )


@cache
def code_version(*modules: str) -> str:
    """Return 12 hex digits of the files of some modules, comments included: to parse them would cost every run 0.2 s.

    The modules are read as files, never imported: an operation's module may load a heavy client.
    """
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        digest.update(Path(spec.origin).read_bytes() if spec is not None and spec.origin else module.encode())
    return digest.hexdigest()[:12]


@cache
def code_version_of(module: str, package: str) -> str:
    """Return 12 hex digits of the files of a module and of all that it imports, directly or not, from its package."""
    digest, waiting, seen = hashlib.sha256(), [module], set[str]()
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name) if name not in seen else None
        seen.add(name)
        if spec is None or spec.origin is None:
            continue
        data = Path(spec.origin).read_bytes()
        digest.update(hashlib.sha256(data).digest())
        waiting += sorted(_imported(data.decode(), package), reverse=True)
    return digest.hexdigest()[:12]


def _imported(source: str, package: str) -> Iterator[str]:
    """Yield the modules of a package that a source's `from ... import ...` may mean."""
    for found, names in re.findall(r"^\s*from (\S+) import (\([^)]*\)|[^\n]*)", source, re.MULTILINE):
        if found == package or found.startswith(f"{package}."):
            yield found
            yield from (f"{found}.{name}" for name in re.findall(r"\b[a-z_]\w*\b", names) if _is_module(found, name))


@cache
def _is_module(package: str, name: str) -> bool:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / f"{name}.py").is_file() for folder in folders or ())
