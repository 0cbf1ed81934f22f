"""Where definitions find their spec: the environment that the supervisor or the platform set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_ops.operations.spec_in_force import SpecInForce

_SPEC_NAME = "infrastructure.yaml"


@dataclass(frozen=True)
class Place:
    """spec_path: what the operator edits. state_dir: this host's files. is_embedded: the servers are embedded."""

    spec_path: Path
    state_dir: Path
    is_embedded: bool

    def spec_in_force(self) -> SpecInForce:
        """Return the spec to define assets from. Raises ConfigError when there never was a valid one."""
        from synapse_ops.operations.spec_in_force import read_spec_in_force

        return read_spec_in_force(self.spec_path, self.state_dir)


def find_place() -> Place:
    """Return the place that SYNAPSE_SPEC, SYNAPSE_STATE_DIR and SYNAPSE_EMBEDDED name, with the CLI's defaults."""
    state_dir = Path(os.environ.get("SYNAPSE_STATE_DIR", ".synapse")).absolute()
    named = os.environ.get("SYNAPSE_SPEC")
    candidates = [Path(named)] if named else [state_dir / _SPEC_NAME, Path(_SPEC_NAME)]
    found = next((path for path in candidates if path.is_file()), candidates[0])
    return Place(found.absolute(), state_dir, os.environ.get("SYNAPSE_EMBEDDED") == "1")
