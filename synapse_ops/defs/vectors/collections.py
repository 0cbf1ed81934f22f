"""The collections of the vector store as partitions: discovered, missed when they vanish, forgotten by a person."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.kinds import COLLECTIONS, COLLECTIONS_PARTITION, collection_partitions
from synapse_ops.defs.backup.restore_check import result_of
from synapse_ops.defs.event_metadata import table
from synapse_ops.defs.in_run import operation_of
from synapse_ops.defs.policies import PRIORITY_RESTORE, run_tags
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.runbook_links import runbook_of_check
from synapse_ops.domain.first_of_many import first_of_many
from synapse_ops.errors import Refused, Unreachable

FORGET_LIMIT = timedelta(minutes=10)
SENSOR_INTERVAL_S = 120
PRESENT_CHECK = "collections_present"


class ForgottenCollection(dg.Config):
    """Which collection needs no more backups."""

    collection: str = Field(description="Name of a collection that is not on the server any more. Its backups stay.")


def collection_definitions() -> dg.Definitions:
    """Return the check that every known collection is there, the discovering sensor, and the job to forget one."""
    return dg.Definitions(
        asset_checks=[_collections_present()], sensors=[_collection_sensor()], jobs=[_forget_collection()]
    )


@dataclass(frozen=True)
class Discovery:
    """present: collections on the server now. known: those discovered so far, and not forgotten."""

    present: tuple[str, ...]
    known: tuple[str, ...]

    @property
    def new(self) -> tuple[str, ...]:
        return tuple(name for name in self.present if name not in self.known)

    @property
    def vanished(self) -> tuple[str, ...]:
        return tuple(name for name in self.known if name not in self.present)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.vanished:
            return "not on the server any more: " + ", ".join(self.vanished)
        return f"all {len(self.present)} collections are there: {first_of_many(self.present)}"


def discover(stack: StackResource, instance: dg.DagsterInstance) -> Discovery:
    """Ask the server for its collections. Raises Unreachable when it does not answer."""
    from synapse_ops.systems.qdrant.server import qdrant_nodes

    servers = qdrant_nodes(stack.open().spec.qdrant)
    known = tuple(sorted(instance.get_dynamic_partitions(COLLECTIONS_PARTITION)))
    with servers[0] as server:
        return Discovery(server.collections(), known)


def presence_of(discovery: Discovery, known: Sequence[str] | None = None) -> dg.AssetCheckEvaluation:
    """Return whether every known collection is there, as an event of `vector_snapshot`."""
    names = known or sorted({*discovery.known, *discovery.present})
    rows = [{"collection": name, "is_there": name in discovery.present} for name in names]
    return dg.AssetCheckEvaluation(
        asset_key=COLLECTIONS.backup_key,
        check_name=PRESENT_CHECK,
        passed=not discovery.vanished,
        description=discovery.sentence,
        metadata={
            "vanished_collections": len(discovery.vanished),
            "collections": table(rows, {"collection": "string", "is_there": "bool"}),
            **runbook_of_check(PRESENT_CHECK),
        },
    )


def _collections_present() -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=PRESENT_CHECK,
        specs=[
            dg.AssetCheckSpec(
                PRESENT_CHECK,
                asset=COLLECTIONS.backup_key,
                metadata=runbook_of_check(PRESENT_CHECK),
                description="Red while a collection that was discovered once is not on the server any more: its "
                "backups have ended. The job forget_collection confirms that this is intended.",
            )
        ],
        can_subset=True,
    )
    def collections_present(
        context: dg.AssetCheckExecutionContext, stack: StackResource
    ) -> Iterator[dg.AssetCheckResult]:
        yield result_of(presence_of(discover(stack, context.instance)))

    return collections_present


def _collection_sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="collection_sensor",
        minimum_interval_seconds=SENSOR_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes a partition of each collection on the server, and turns collections_present red when one "
        "of them vanishes. A server that does not answer fails the tick, once there is something to protect.",
    )
    def collection_sensor(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult | dg.SkipReason:
        return look_at_collections(context, stack)

    return collection_sensor


def look_at_collections(context: dg.SensorEvaluationContext, stack: StackResource) -> dg.SensorResult | dg.SkipReason:
    """Return one tick's new partitions, and the check when its verdict changed or a snapshot is newer than it.

    Dagster shows a check that is older than the newest materialization as "not evaluated". Safe to repeat.
    """
    try:
        found = discover(stack, context.instance)
    except Unreachable as error:
        if context.instance.get_dynamic_partitions(COLLECTIONS_PARTITION):
            raise
        return dg.SkipReason(f"no collection was discovered yet, and {error.message}")
    requests = [collection_partitions.build_add_request(list(found.new))] if found.new else []
    newest = context.instance.get_latest_materialization_event(COLLECTIONS.backup_key)
    cursor = f"{newest.timestamp if newest is not None else 0:f} {' '.join(found.vanished)}"
    is_news = (context.cursor or "") != cursor and bool(context.cursor or found.known or found.new)
    events = [presence_of(found)] if is_news else []
    return dg.SensorResult(dynamic_partitions_requests=requests, asset_events=events, cursor=cursor)


def _forget_collection() -> Any:
    @dg.op(out=dg.Out(dg.Nothing), description="Confirm that a vanished collection needs no more backups.")
    def forget(context: dg.OpExecutionContext, config: ForgottenCollection, stack: StackResource) -> None:
        with operation_of(context.run.run_id, context.instance):
            found = discover(stack, context.instance)
            if config.collection not in found.vanished:
                where = "is on the server" if config.collection in found.present else "was never discovered"
                raise Refused(
                    f'collection "{config.collection}" {where}: only one that vanished can be forgotten',
                    detail=f"vanished: {', '.join(found.vanished) or 'none'}",
                )
        context.instance.delete_dynamic_partition(COLLECTIONS_PARTITION, config.collection)

    @dg.job(
        description="Forget a collection that is not on the server any more. Its backups stay until they expire.",
        tags=run_tags(FORGET_LIMIT, priority=PRIORITY_RESTORE),
    )
    def forget_collection() -> None:
        forget()

    return forget_collection
