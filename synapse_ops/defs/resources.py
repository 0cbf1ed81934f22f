"""The one resource: where the spec and this host's files are. Opened in a run, never while definitions load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack


class StackResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The stack that a spec describes. It holds paths only; secrets are resolved by the operation that needs them."""

    spec_path: str = Field(
        description="The spec in force: a copy that is kept by content, so that a run reads one spec."
    )
    state_dir: str = Field(description="Where this host keeps state, caches and scratch files.")

    def open(self) -> Stack:
        """Return the stack. Raises ConfigError for the spec's faults."""
        from synapse_ops.defs.redacted_errors import redact_recorded_errors
        from synapse_ops.operations.stack import open_stack

        redact_recorded_errors()  # secrets are resolved from here on
        return open_stack(Path(self.spec_path), Path(self.state_dir))
