"""What the control file of a data directory says, running or not."""

from __future__ import annotations

from pathlib import Path

from synapse_ops.systems.host.processes import ServerIdentity, run_as
from synapse_ops.systems.postgres.programs import PgTools


def timeline_to_write(control: dict[str, str]) -> int:
    """Return the timeline that a start as the primary goes on with. Between a promotion and its first checkpoint the
    control file has the new one only as the end of recovery.
    """
    return max(int(control["Latest checkpoint's TimeLineID"]), int(control["Min recovery ending loc's timeline"]))


def control_data(data_dir: Path, tools: PgTools, identity: ServerIdentity | None) -> dict[str, str]:
    """Return what pg_controldata says, label -> value."""
    command: list[str | Path] = [tools.path("pg_controldata"), "-D", data_dir]
    done = run_as(identity, command, timeout_s=60, env=tools.environment())
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return {label.strip(): value.strip() for label, _, value in lines}
