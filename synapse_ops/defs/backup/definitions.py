"""Everything that Dagster knows of backups: the same for each kind that the spec has on."""

from typing import TYPE_CHECKING

import dagster as dg

from synapse_ops.defs.backup.age_checks import age_checks
from synapse_ops.defs.backup.assets import backup_assets
from synapse_ops.defs.backup.jobs import backup_jobs
from synapse_ops.defs.backup.kinds import AssetKind, asset_kinds_of
from synapse_ops.defs.backup.repository_sensor import repository_sensor

if TYPE_CHECKING:
    from synapse_ops.defs.place import Place
    from synapse_ops.spec import Spec


def backup_definitions(spec: "Spec", place: "Place") -> dg.Definitions:
    """Return assets, checks, jobs, schedules and sensors of each kind that the spec has backed up."""
    return dg.Definitions.merge(*(definitions_of(kind, spec, place) for kind in asset_kinds_of(spec)))


def definitions_of(kind: AssetKind, spec: "Spec", place: "Place") -> dg.Definitions:
    """Return the definitions of one kind."""
    jobs = backup_jobs(kind, spec, place)
    proof = next(job for job in jobs.jobs or () if job.name == kind.job("proof"))
    sensors = dg.Definitions(sensors=[repository_sensor(kind, proof)])
    ages = dg.Definitions(asset_checks=[age_checks(kind)])
    return dg.Definitions.merge(backup_assets(kind, spec), ages, jobs, sensors)
