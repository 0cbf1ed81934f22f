"""The groups, merged, with the one resource and the one executor."""

from __future__ import annotations

from typing import Any

import dagster as dg

from synapse_ops.defs.alarms import alarm_definitions
from synapse_ops.defs.backup.definitions import backup_definitions
from synapse_ops.defs.cleanup.assets import cleanup_definitions
from synapse_ops.defs.failover.record import failover_definitions
from synapse_ops.defs.failover.steering import steering_definitions
from synapse_ops.defs.health.active_alerts import active_alert_definitions
from synapse_ops.defs.health.assets import health_definitions
from synapse_ops.defs.place import find_place
from synapse_ops.defs.recovery.drills import drill_definitions
from synapse_ops.defs.recovery.recoverability import recovery_definitions
from synapse_ops.defs.recovery.recovery_plan import recovery_plan_definitions
from synapse_ops.defs.recovery.wal_archive import wal_archive_definitions
from synapse_ops.defs.release.assets import manifest_definitions
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec.assets import spec_definitions
from synapse_ops.defs.spec.sensor import spec_sensor_definitions
from synapse_ops.defs.vectors.collections import collection_definitions
from synapse_ops.local.embedded_programs import has_embedded_programs
from synapse_ops.operations.stack import Stack


def merged_definitions() -> dg.Definitions:
    """Return the definitions of the spec in force. Raises ConfigError when there never was a valid one."""
    place = find_place()
    loaded = place.spec_in_force().loaded
    shared = dg.Definitions(resources={"stack": StackResource()}, executor=dg.in_process_executor)
    spec = spec_definitions(place, loaded)
    groups = dg.Definitions.merge(
        spec,
        spec_sensor_definitions(place, loaded, job_named(spec, "record_spec")),
        manifest_definitions(),
        backup_definitions(loaded.spec, place),
        collection_definitions(),
        health_definitions(loaded, Stack(loaded, place.state_dir), is_embedded=place.is_embedded),
        active_alert_definitions(),
        cleanup_definitions(loaded.spec, place),
        alarm_definitions(loaded.spec.name, loaded.spec.alerting.runbook_url),
        *(
            [failover_definitions(), steering_definitions(loaded.spec)]
            if place.is_embedded and loaded.spec.failover.is_ours
            else []
        ),
        drill_definitions(loaded.spec, has_programs=has_embedded_programs()),
        *(
            [wal_archive_definitions(), recovery_plan_definitions()]
            if loaded.spec.backup.database.wal_archiving != "off"
            else []
        ),
    )
    return dg.Definitions.merge(shared, recovery_definitions(loaded.spec, groups), groups)


def job_named(definitions: dg.Definitions, name: str) -> Any:
    """Return one job of a group, for the sensor that starts it."""
    return next(job for job in definitions.jobs or () if job.name == name)
