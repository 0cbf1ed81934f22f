"""Everything that Dagster knows of backups: the same for each kind that the spec has on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.backup.age_checks import age_checks
from synapse_ops.defs.backup.assets import backup_assets
from synapse_ops.defs.backup.expiry import expiry_jobs
from synapse_ops.defs.backup.jobs import backup_jobs, restore_job
from synapse_ops.defs.backup.kinds import AssetKind, asset_kinds_of
from synapse_ops.defs.backup.repository_sensor import repository_sensor

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import Spec


def backup_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return assets, checks, jobs, schedules and sensors of the kinds that the spec has backed up."""
    return definitions_of(asset_kinds_of(spec), spec, place)


def definitions_of(kinds: Sequence[AssetKind], spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the definitions of these kinds: each its own assets, backup and proof; one restore and expiry for all."""
    for_all = dg.Definitions.merge(dg.Definitions(jobs=[restore_job(kinds)]), expiry_jobs(kinds, spec, place))
    return dg.Definitions.merge(*(_of_one(kind, spec) for kind in kinds), for_all)


def _of_one(kind: AssetKind, spec: "Spec") -> dg.Definitions:
    jobs = backup_jobs(kind, spec)
    proof = next(job for job in jobs.jobs or () if job.name == kind.job("prove"))
    sensors = dg.Definitions(sensors=[repository_sensor(kind, proof)])
    ages = dg.Definitions(asset_checks=[age_checks(kind)])
    return dg.Definitions.merge(backup_assets(kind, spec), ages, jobs, sensors)
