"""The groups, merged, with the one resource and the one executor."""

from __future__ import annotations

import dagster as dg

from synapse_ops.defs.place import find_place
from synapse_ops.defs.resources import StackResource
from synapse_ops.defs.spec_assets import spec_definitions


def merged_definitions() -> dg.Definitions:
    """Return the definitions of the spec in force. Raises ConfigError when there never was a valid one."""
    place = find_place()
    loaded = place.spec_in_force().loaded
    stack = StackResource(spec_path=str(loaded.path), state_dir=str(place.state_dir))
    shared = dg.Definitions(resources={"stack": stack}, executor=dg.in_process_executor)
    return dg.Definitions.merge(shared, spec_definitions(place, loaded))
