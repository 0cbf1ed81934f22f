"""`wal_archive`: how far the WAL in the repository reaches. The receiver writes it; Dagster only looks.

The sensor reports it without a run: every five minutes, and at once when the check turns red or green.
"""

import json
import time
from typing import Any

import dagster as dg

from synapse_ops.defs.policies import GROUP_DATABASE, OWNERS, TAG_TRIGGER
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.domain.backup.kinds import BASE

WAL_ARCHIVE_KEY = dg.AssetKey("wal_archive")
CHECK_NAME = "wal_is_stored"
BASE_JOB = f"backup_{BASE.word}"
SENSOR_INTERVAL_S = 60
REFRESH_S = 300


def wal_archive_definitions() -> dg.Definitions:
    """Return the external asset, its check, and the sensor that reports both."""
    page = dg.AssetSpec(
        WAL_ARCHIVE_KEY,
        group_name=GROUP_DATABASE,
        owners=OWNERS,
        kinds={"postgres", "s3"},
        description="The write-ahead log in the repository, written by the WAL receiver each second. `lag_s` is how "
        "old the newest stored WAL is while the server has more; `rpo_observed_s` how long ago the last stored commit "
        "was, some ten seconds on a quiet server; `gaps` are bytes that no restore can pass.",
    )
    return dg.Definitions(assets=[page], asset_checks=[_check()], sensors=[_sensor()])


def _check() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=WAL_ARCHIVE_KEY,
        name=CHECK_NAME,
        description="Red while WAL of the primary is not stored for longer than `objectives.rpo` (one minute without "
        "it), while bytes are missing, and while it is unknown.",
        metadata=runbook_of_check(CHECK_NAME),
    )
    def wal_is_stored(stack: StackResource) -> dg.AssetCheckResult:
        from synapse_ops.operations.database.wal_report import read_wal_report

        report = read_wal_report(stack.open())
        return dg.AssetCheckResult(
            passed=not report.faults,
            severity=dg.AssetCheckSeverity.ERROR,
            description=report.sentence,
            metadata={**report.facts(), **runbook_of_check(CHECK_NAME)},
        )

    return wal_is_stored


def _sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="wal_archive_sensor",
        job_name=BASE_JOB,
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports how far WAL is stored: every five minutes, and at once when that turns good or bad. Where "
        "bytes are missing that no restore can pass, and after a promotion, it starts a base backup, once for each.",
    )
    def wal_archive_sensor(
        context: dg.SensorEvaluationContext, stack: StackResource
    ) -> dg.SensorResult | dg.SkipReason:
        return look(context.cursor, stack, time.time())

    return wal_archive_sensor


def look(cursor: str | None, stack: StackResource, now_s: float) -> dg.SensorResult | dg.SkipReason:
    """Return one tick. Safe to repeat: the cursor says when the page was written, and what it said; the run key of a
    base backup is the gap or the promotion that it leaves behind.
    """
    from synapse_ops.operations.database.wal_report import read_wal_report

    before: dict[str, Any] = json.loads(cursor or "{}")
    report = read_wal_report(stack.open())
    passed = not report.faults
    wanted = report.base_wanted
    if (
        wanted == before.get("wanted", "")
        and before.get("passed") == passed
        and now_s - before.get("at", 0) < REFRESH_S - SENSOR_INTERVAL_S / 2
    ):
        return dg.SkipReason(report.sentence)
    facts = report.facts()
    return dg.SensorResult(
        run_requests=[_base_backup(wanted)] if wanted and wanted != before.get("wanted") else [],
        asset_events=[
            dg.AssetMaterialization(
                WAL_ARCHIVE_KEY, description=report.sentence, metadata=facts, tags={TAG_TRIGGER: "sensor"}
            ),
            dg.AssetCheckEvaluation(
                asset_key=WAL_ARCHIVE_KEY,
                check_name=CHECK_NAME,
                passed=passed,
                severity=dg.AssetCheckSeverity.ERROR,
                description=report.sentence,
                metadata={**facts, **runbook_of_check(CHECK_NAME)},
            ),
        ],
        cursor=json.dumps({"passed": passed, "at": now_s, "wanted": wanted}),
    )


def _base_backup(why: str) -> dg.RunRequest:
    """Return the run that makes moments behind a gap restorable again, or those behind a promotion soon restored."""
    return dg.RunRequest(run_key=f"wal {why}", partition_key=BASE.word, tags={TAG_TRIGGER: "sensor"})
