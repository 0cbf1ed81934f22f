"""What is protected, of each kind: backup -> proof of restore -> expiry plan -> retention set.

Partitioned by what is backed up, always; never by time (a backfill of yesterday's dump is a lie) and never by backup id
(each new one would make every old proof stale). A chosen backup is a field of the config.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.backup.expiry import expiry_assets
from synapse_ops.defs.backup.kinds import AssetKind
from synapse_ops.defs.backup.restore_check import (
    evaluation_of,
    judge_proofs,
    proof_check_spec,
    restore_check,
    result_of,
)
from synapse_ops.defs.backup.verbs import ProofConfig, back_up, prove, refuse_unless_proven
from synapse_ops.defs.event_metadata import proof_metadata
from synapse_ops.defs.policies import OWNERS, code_version
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_key

if TYPE_CHECKING:
    from synapse_ops.spec import Spec


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
        description=f"{kind.about_backup} It counts for retention only once it is proven: see the check "
        "restore_proven.",
    )
    def backup(context: dg.AssetExecutionContext, stack: StackResource) -> dg.MaterializeResult[None]:
        backup_id, metadata = back_up(context, stack, kind)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(backup_id))

    return backup


def _proof(kind: AssetKind, spec: "Spec") -> dg.AssetsDefinition:
    proof = dg.AssetSpec(
        kind.proof_key,
        deps=[kind.backup_key, *map(dg.AssetKey, kind.proven_with), spec_key("proof"), spec_key("encryption")],
        group_name=kind.group,
        owners=OWNERS,
        kinds={kind.technology, "s3"},
        skippable=True,
        code_version=code_version(*kind.versioned[1]),
        description=f"{kind.about_proof} Anything but an equal restore fails the run and the checks restore_proven and "
        "newest_proof_passed.",
    )

    @dg.multi_asset(
        name=kind.proof_key.to_python_identifier(),
        specs=[proof],
        check_specs=[proof_check_spec(kind)],
        partitions_def=kind.partitions(spec),
        pool=kind.pool,
        can_subset=True,
    )
    def restore_proof(
        context: dg.AssetExecutionContext, config: ProofConfig, stack: StackResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        """The check runs in the asset and not after it: after a proof that failed it is the one that matters."""
        report = prove(context, stack, kind, config) if context.selected_asset_keys else None
        if report is not None:
            metadata = proof_metadata(report.record, report.url)
            if report.is_proven:
                yield dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(report.record.digest()))
            else:
                failed = dg.AssetObservation(kind.proof_key, partition=context.partition_key, metadata=metadata)
                context.log_event(failed)
        judged = judge_proofs(kind, stack.open(), context.instance)
        if context.selected_asset_check_keys and not judged.is_empty:
            yield result_of(evaluation_of(judged, kind=kind, instance=context.instance, run_id=context.run.run_id))
        if report is not None:
            refuse_unless_proven(report)

    return restore_proof
