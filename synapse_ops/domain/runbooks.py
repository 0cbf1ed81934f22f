"""Which page of docs/runbooks says what to do: for each check, each failed run, each alarm of Dagster."""

from __future__ import annotations

from collections.abc import Mapping

CHECK_PAGES: Mapping[str, str] = {
    "objectives_met": "objectives-missed",
    "drills_meet_objectives": "drill-failed",
    "restore_proven": "proof-failed",
    "newest_proof_passed": "proof-failed",
    "backup_age": "backup-too-old",
    "proof_age": "backup-unproven",
    "wal_is_stored": "wal-not-stored",
    "failover_is_armed": "failover-not-armed",
    "healthy": "probe-failed",
    "everything_healthy": "probe-failed",
    "alarms_reach_somebody": "alarms-reach-nobody",
    "spec_loaded_equals_file": "spec-not-loaded",
    "collections_present": "collection-vanished",
    "consistent": "document-inconsistent",
    "redis_fits_spec": "redis-differs-from-spec",
}
_PROBE_PAGES: Mapping[str, str] = {
    "server/replication": "primary-down",
    "server/failover": "failover-not-armed",
    "server/disk": "disk-nearly-full",
    "server/certificates": "certificate-expires",
    "server/object-store": "repository-unreadable",
}
RUN_PAGE = "run-failed"
TICK_PAGE = "tick-failed"
DOWN_PAGE = "dagster-down"
PAGES = frozenset({*CHECK_PAGES.values(), RUN_PAGE, TICK_PAGE, DOWN_PAGE})

UI_PATH = "/runbooks/"  # where the guarded webserver serves the pages


def page_of_probe(name: str) -> str:
    """Return the page of what a probe asks; one of its own where there is more to do than to start it."""
    return _PROBE_PAGES.get(name, CHECK_PAGES["healthy"])


def alarm_url(page: str, base: str | None) -> str:
    """Return where an alarm's page is read; without `alerting.runbook_url` (base) its path in this project."""
    return f"{(base or 'docs/runbooks').rstrip('/')}/{page}.md"
