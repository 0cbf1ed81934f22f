"""The alerts that the prober received, kept in its history. Needs no Dagster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from synapse_ops.domain.health.alerts import ActiveAlert, after_notification
from synapse_ops.operations.health.history import reading_history

NOTE = "active_alerts"


def read_active_alerts(state_dir: Path, now: datetime) -> tuple[ActiveAlert, ...] | None:
    """Return the alerts that fire, the longest first; None when none was ever received.

    Raises Refused when no prober has run there.
    """
    with reading_history(state_dir) as history:
        found = history.note(NOTE)
    return None if found is None else after_notification(map(ActiveAlert.from_json, found), (), now)
