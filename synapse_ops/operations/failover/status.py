"""What the watcher said last, and every incident of the ledger: what `failover status` and Dagster show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.failover.incident import Incident
from synapse_ops.operations.failover.ledger import Ledger

WATCH_FILE = "watch.json"  # in the folder of the ledger; written by services/prober/failover_watch.py
PULSE_S = 5.0  # the longest time between two writings
SILENCE = timedelta(seconds=4 * PULSE_S)


@dataclass(frozen=True)
class FailoverStatus:
    """unarmed: why a dead primary would not be failed over now; empty: it would. primary, standby: names of nodes.

    incidents: oldest first, each with how its old primary came back, None where it did not.
    """

    unarmed: str
    state: str
    primary: str | None
    standby: str | None
    refused: str
    incidents: tuple[tuple[Incident, dict[str, Any] | None], ...]

    @property
    def is_armed(self) -> bool:
        """Whether a dead primary would be failed over now."""
        return not self.unarmed and not self.refused

    @property
    def sentence(self) -> str:
        if self.refused:
            return f"NOT failed over, and waits for a person: {self.refused}"
        if self.unarmed:
            return f"NOT armed: {self.unarmed}"
        return f"armed: if {self.primary} dies, {self.standby} takes writes"


def read_status(state_dir: Path, now: datetime) -> FailoverStatus:
    """Return how failover stands. A watcher that never spoke, or is silent, is a reason of its own."""
    ledger = Ledger.of(state_dir)
    incidents = tuple((one, ledger.rejoin(one.id)) for one in ledger.incidents())
    try:
        body: dict[str, Any] = json.loads((ledger.folder / WATCH_FILE).read_text(encoding="utf-8"))
        silence = now - datetime.fromisoformat(body["at"])
    except (OSError, ValueError, KeyError):
        return FailoverStatus("no watcher has looked at the nodes; `local up` starts it", "", None, None, "", incidents)
    unarmed = str(body.get("unarmed") or "")
    if silence > SILENCE:
        unarmed = f"the watcher has said nothing for {silence.total_seconds():.0f} s; `local up` starts it"
    return FailoverStatus(
        unarmed, str(body["state"]), body["primary"], body["standby"], str(body.get("refused") or ""), incidents
    )
