"""The one resource: the stack of the spec in force. Opened in a run, never while definitions load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack


class StackResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The stack that the spec in force describes. Secrets are resolved by the operation that needs them.

    It has no field on purpose: Dagster writes fields into the configuration of a run, and a re-execution would keep
    the former spec with its former destination and retention.
    """

    def open(self) -> Stack:
        """Return the stack of the spec in force now. Raises ConfigError when there never was a valid one."""
        from synapse_ops.defs.place import find_place
        from synapse_ops.defs.redacted_errors import redact_recorded_errors
        from synapse_ops.operations.stack import Stack

        redact_recorded_errors()  # secrets are resolved from here on
        place = find_place()
        return Stack(place.spec_in_force().loaded, place.state_dir)
