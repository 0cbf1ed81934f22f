"""What is protected, of each kind: backup -> proof of restore -> expiry plan -> retention set.

Partitioned by what is backed up, always; never by time (a backfill of yesterday's dump is a lie) and never by backup id
(each new one would make every old proof stale). A chosen backup is a field of the config.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from synapse_ops.defs.backup.expiry import expiry_assets
from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import restore_check
from synapse_ops.defs.backup.verbs import back_up, prove, refuse_unless_proven
from synapse_ops.defs.event_metadata import proof_metadata
from synapse_ops.defs.policies import OWNERS, code_version, freshness_of
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.spec import Spec


class ProofConfig(dg.Config):
    """Which backup a proof restores."""

    backup_id: str = Field(
        "",
        description="Id of the backup to restore, as `synapse-ops backup list` prints it; an unknown one is refused "
        "with the nearest ids. Empty: the newest backup that has not been proven.",
    )
    only_untried: bool = Field(
        False, description="Do nothing when the backup already has a proof, whatever its verdict."
    )


def backup_assets(kind: AssetKind, spec: "Spec") -> dg.Definitions:
    """Return the assets of one kind, and the check restore_proven."""
    assets = [_backup(kind, spec), _proof(kind, spec), *expiry_assets(kind, spec)]
    return dg.Definitions(assets=assets, asset_checks=[restore_check(kind)])


def _backup(kind: AssetKind, spec: "Spec") -> dg.AssetsDefinition:
    @dg.asset(
        key=kind.backup_key,
        partitions_def=kind.partitions(spec),
        deps=[spec_key(block) for block in kind.blocks],
        pool=kind.pool,
        group_name=kind.group,
        owners=OWNERS,
        kinds={kind.technology, "s3"},
        code_version=code_version(*kind.versioned[0]),
        freshness_policy=freshness_of(kind.schedule(spec).longest_gap(spec.time_zone)),
        description=f"{kind.about_backup} It counts for retention only once it is proven: see the check "
        "restore_proven.",
    )
    def backup(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        backup_id, metadata = back_up(context, stack, kind, context.partition_key)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(backup_id))

    return backup


def _proof(kind: AssetKind, spec: "Spec") -> dg.AssetsDefinition:
    @dg.asset(
        key=kind.proof_key,
        partitions_def=kind.partitions(spec),
        deps=[kind.backup_key, spec_key("proof"), spec_key("encryption")],
        pool=kind.pool,
        group_name=kind.group,
        owners=OWNERS,
        kinds={kind.technology, "s3"},
        output_required=False,
        code_version=code_version(*kind.versioned[1]),
        freshness_policy=freshness_of(spec.proof.schedule.longest_gap(spec.time_zone)),
        description=f"{kind.about_proof} Anything but an equal restore fails the run and the check restore_proven.",
    )
    def restore_proof(
        context: dg.AssetExecutionContext, config: ProofConfig, stack: StackResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        report = prove(
            context,
            stack,
            kind,
            context.partition_key,
            backup_id=config.backup_id or None,
            only_untried=config.only_untried,
        )
        if report is None:
            return
        metadata = proof_metadata(report.record, report.url)
        if not report.is_proven:
            context.log_event(dg.AssetObservation(kind.proof_key, partition=context.partition_key, metadata=metadata))
        refuse_unless_proven(report)
        yield dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(report.record.digest()))

    return restore_proof
