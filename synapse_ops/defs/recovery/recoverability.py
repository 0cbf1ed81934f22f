"""`recoverability`: the page of the night. What can be restored to when, in how long, proven when; and what is wrong.

The sensor reports it without a run: at each backup, at each proof, when a check turns red or green, and every five
minutes, because what would be lost now grows by itself. Materialize does the same in a run.
"""

import json
import textwrap
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_ops.defs.backup.age_checks import age_evaluations
from synapse_ops.defs.backup.kinds import AssetKind, asset_kinds_of
from synapse_ops.defs.event_metadata import MOST_MARKDOWN, Metadata, short_lines, summary, table
from synapse_ops.defs.health.assets import REPORT_CHECK
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import GROUP_RECOVERY, OWNERS, TAG_TRIGGER, code_version
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import RUNBOOK, runbook_of_check
from synapse_ops.defs.spec.assets import spec_key
from synapse_ops.domain.durations import format_when
from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.recoverability import Recoverability
    from synapse_ops.operations.recovery.recoverability import Catalogs
    from synapse_ops.operations.stack import Stack
    from synapse_ops.spec import Spec

RECOVERABILITY_KEY = dg.AssetKey("recoverability")
CHECK_NAME = "objectives_met"
SENSOR_INTERVAL_S = 30
REFRESH_S = 300


def recovery_definitions(spec: "Spec", others: dg.Definitions) -> dg.Definitions:
    """Return the page, its check, and the sensor that keeps it fresh. others: whose failing checks the page lists."""
    kinds = asset_kinds_of(spec)
    checks = check_keys_of(others)
    return dg.Definitions(assets=[_page(kinds, checks)], sensors=[_sensor(kinds, checks)])


def check_keys_of(definitions: dg.Definitions) -> frozenset[dg.AssetCheckKey]:
    """Return the keys of all checks, without resolving the graph."""
    made = (*(definitions.assets or ()), *(definitions.asset_checks or ()))
    return frozenset(key for one in made if isinstance(one, dg.AssetsDefinition) for key in one.check_keys)


@dataclass(frozen=True)
class Page:
    """What the page shows. failing: (time, evaluation) of each check that is red, or warns, besides the page's own."""

    found: "Recoverability"
    failing: list[tuple[float, dg.AssetCheckEvaluation]]

    def metadata(self) -> Metadata:
        """Return the page, its sentence first."""
        from synapse_ops.domain.recovery.recoverability import COLUMNS, table_rows
        from synapse_ops.domain.recovery.window_picture import as_markdown

        rows, evidence = self.found.rows, [row.evidence for row in self.found.rows]
        lost = [row.lost_now.total_seconds() for row in rows if row.lost_now is not None and row.objectives]
        takes = [one.restore_s for one in evidence if one.restore_s is not None]
        return {
            "summary": summary(self.found.sentence),
            **({"what_to_do": dg.MetadataValue.md(what_to_do(self.failing))} if self.failing else {}),
            "window": dg.MetadataValue.md(as_markdown(self.found.picture())),
            "recoverability": table(table_rows(rows, self.found.time_zone), dict.fromkeys(COLUMNS, "string")),
            **({"wrong_now": dg.MetadataValue.md(self._wrong_now())} if self.failing else {}),
            "failing_checks": len(self.failing),
            "subjects": len(rows),
            "objectives_missed": len(self.found.missed),
            **({"rpo_observed_s": round(max(lost), 1)} if lost else {}),
            **({"predicted_restore_s": round(max(takes), 1)} if takes else {}),
        }

    def _wrong_now(self) -> str:
        """Return all that each failing check says; in a table its long words would make the whole page wider."""
        lines = []
        for at_s, one in self.failing:
            at = format_when(datetime.fromtimestamp(at_s, UTC), self.found.at, self.found.time_zone)
            says = f"{one.severity.value} of {at}: {one.description or ''}"
            lines.append(short_lines(says, first=f"- {_name_of(one)}", indent=4))
        return "\n".join(lines)

    def evaluation(self) -> dict[str, Any]:
        """Return what the check says, as fields of an evaluation or a result."""
        return {
            "asset_key": RECOVERABILITY_KEY,
            "check_name": CHECK_NAME,
            "passed": self.found.is_met,
            "severity": dg.AssetCheckSeverity.ERROR,
            "description": self.found.sentence,
            "metadata": {
                "missed": [row.name for row in self.found.missed],
                "warnings": list(self.found.warnings),
                **runbook_of_check(CHECK_NAME),
            },
        }


def what_to_do(failing: Sequence[tuple[float, dg.AssetCheckEvaluation]]) -> str:
    """Return a link to the runbook of each failing check with the beginning of what it says.

    Errors come first, the newest of them at the top: it is what somebody was called for. What only sums others up is
    behind them. Of many, each says less.
    """

    def place(row: tuple[float, dg.AssetCheckEvaluation]) -> tuple[bool, bool, float]:
        at_s, one = row
        return one.severity is not dg.AssetCheckSeverity.ERROR, one.check_name == REPORT_CHECK, -at_s

    said: list[str] = []
    most = 110 if len(failing) <= 4 else 45
    room = MOST_MARKDOWN
    for _, one in sorted(failing, key=place):
        page = one.metadata.get(RUNBOOK)
        name = _name_of(one)
        link = f"- [{name}]({page.value})" if isinstance(page, dg.UrlMetadataValue) else f"- {name}"
        line = short_lines(textwrap.shorten(one.description or "", most, placeholder=" ..."), first=link, indent=4)
        room -= len(line) + 1
        if room < 0:
            return "\n".join([*said, f"- and {len(failing) - len(said)} more: see wrong_now"])
        said.append(line)
    return "\n".join(said)


def _name_of(one: dg.AssetCheckEvaluation) -> str:
    return f"{one.asset_key.to_user_string()}: {one.check_name}"


def _restorable(
    stack: "Stack", instance: dg.DagsterInstance, kinds: Collection[AssetKind], catalogs: "Catalogs"
) -> "Recoverability":
    from synapse_ops.operations.recovery.recoverability import read_recoverability

    expected = {kind.kind.name: kind.expected(stack, instance) for kind in kinds}
    return read_recoverability(stack, datetime.now(UTC), expected=expected, read=catalogs.read, with_spans=True)


def _catalogs(stack: "Stack") -> "Catalogs":
    from synapse_ops.operations.recovery.recoverability import Catalogs

    return Catalogs(stack)


def _page(kinds: Collection[AssetKind], checks: Collection[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    @dg.asset(
        key=RECOVERABILITY_KEY,
        deps=[*(key for kind in kinds for key in (kind.backup_key, kind.proof_key)), spec_key("objectives")],
        group_name=GROUP_RECOVERY,
        owners=OWNERS,
        kinds={"s3"},
        code_version=code_version("synapse_ops.domain.recovery.recoverability"),
        freshness_policy=dg.FreshnessPolicy.time_window(
            warn_window=timedelta(minutes=12), fail_window=timedelta(minutes=20)
        ),
        check_specs=[
            dg.AssetCheckSpec(
                CHECK_NAME,
                asset=RECOVERABILITY_KEY,
                metadata=runbook_of_check(CHECK_NAME),
                description="Red while any subject cannot be restored as `objectives` of the spec promise, or while "
                "something stands against its backups. Its sentence says what is lost.",
            )
        ],
        description="What can be restored now: to when, in how long, proven when, what would be lost, what is wrong, "
        "and what happens next, for each subject. `rpo_observed_s` is the most work that would be lost; "
        "`predicted_restore_s` the longest restore, by the proofs of the last backups. In `window` a mark is a backup, "
        "green once it is proven and orange until then; along the bar every moment can be restored; the gray line is "
        "the end of the retention.",
    )
    def recoverability(context: dg.AssetExecutionContext, stack: StackResource) -> Iterator[dg.MaterializeResult[None]]:
        from synapse_ops.systems.dagster_storage import failing_checks

        with operation_of(context.run.run_id, context.instance):
            opened = stack.open()
            found = _restorable(opened, context.instance, kinds, _catalogs(opened))
            page = Page(found, failing_checks(context.instance, checks))
        context.log.info(page.found.sentence)
        yield dg.MaterializeResult(metadata=page.metadata(), check_results=[dg.AssetCheckResult(**page.evaluation())])

    return recoverability


def _sensor(kinds: Collection[AssetKind], checks: Collection[dg.AssetCheckKey]) -> dg.SensorDefinition:
    @dg.sensor(
        name="recoverability_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps the page recoverability fresh: at each backup, proof and change of a check, and every five "
        "minutes.",
    )
    def recoverability_sensor(
        context: dg.SensorEvaluationContext, stack: StackResource
    ) -> dg.SensorResult | dg.SkipReason:
        from synapse_ops.operations.recovery.last_tick import touch_last_tick

        touch_last_tick(stack.open().state_dir)
        return refresh(context, stack, kinds, checks, time.time())

    return recoverability_sensor


def refresh(
    context: dg.SensorEvaluationContext,
    stack: StackResource,
    kinds: Collection[AssetKind],
    checks: Collection[dg.AssetCheckKey],
    now_s: float,
) -> dg.SensorResult | dg.SkipReason:
    """Return one tick: the page when there is news or it is five minutes old. Safe to repeat."""
    from synapse_ops.systems.dagster_storage import failing_checks, newest_event_of

    cursor = json.loads(context.cursor or "{}")
    keys = [key for kind in kinds for key in (kind.backup_key, kind.proof_key)]
    event, failing = newest_event_of(context.instance, keys), failing_checks(context.instance, checks)
    is_news = (cursor.get("event"), cursor.get("failing")) != (event, _names(failing))
    if not is_news and now_s - cursor.get("at", 0) < REFRESH_S - SENSOR_INTERVAL_S / 2:
        return dg.SkipReason("no backup, proof or change of a check since the page was written")
    opened = stack.open()
    catalogs = _catalogs(opened)
    ages = list(_changed_ages(opened, context.instance, kinds, catalogs, datetime.fromtimestamp(now_s, UTC)))
    told = {(one.asset_key, one.check_name) for one in ages}
    failing = [row for row in failing if (row[1].asset_key, row[1].check_name) not in told]
    failing += [(now_s, one) for one in ages if not one.passed]
    page = Page(_restorable(opened, context.instance, kinds, catalogs), failing)
    written = dg.AssetMaterialization(
        RECOVERABILITY_KEY, description=page.found.sentence, metadata=page.metadata(), tags={TAG_TRIGGER: "sensor"}
    )
    return dg.SensorResult(
        asset_events=[*ages, written, dg.AssetCheckEvaluation(**page.evaluation())],
        cursor=json.dumps({"event": event, "failing": _names(failing), "at": now_s}),
    )


def _names(failing: Sequence[tuple[float, dg.AssetCheckEvaluation]]) -> list[str]:
    return sorted(f"{one.asset_key.to_user_string()}:{one.check_name}" for _, one in failing)


def _changed_ages(
    stack: "Stack", instance: dg.DagsterInstance, kinds: Collection[AssetKind], catalogs: "Catalogs", now: datetime
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the age checks that say something new, or that Dagster shows as not evaluated since a newer backup."""
    from synapse_ops.systems.dagster_storage import last_evaluation

    for kind in kinds:
        try:
            catalog = catalogs.read(kind.kind)
        except SynapseOpsError:
            continue  # nothing new is known of it; the page is red and says so
        for found in age_evaluations(kind, stack, instance, catalog, now):
            last = last_evaluation(instance, found.asset_key, found.check_name)
            same = (found.passed, found.description, found.target_materialization_data)
            if last is None or (last.passed, last.description, last.target_materialization_data) != same:
                yield found
