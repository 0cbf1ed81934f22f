"""The alerts that the prober was told of, kept in its history. Needs no Dagster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from synapse_ops.domain.active_alerts import ActiveAlert, after_notification
from synapse_ops.errors import Refused
from synapse_ops.operations.health_history import HistoryReader, history_file

NOTE = "active_alerts"


def read_active_alerts(state_dir: Path, now: datetime) -> tuple[ActiveAlert, ...] | None:
    """Return the alerts that fire, the longest first; None when none was ever told.

    Raises Refused when no prober ever ran there.
    """
    try:
        with HistoryReader(history_file(state_dir)) as history:
            found = history.note(NOTE)
    except FileNotFoundError:
        raise Refused(f"no prober ever ran for {state_dir}", hint="Start one with `synapse-ops ui`.") from None
    return None if found is None else after_notification(map(ActiveAlert.from_json, found), (), now)
