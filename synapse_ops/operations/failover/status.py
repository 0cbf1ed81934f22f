"""What the watcher said last, and every incident of the ledger: what `failover status` and Dagster show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from synapse_ops.domain.failover.incident import BY_HAND, Incident
from synapse_ops.operations.failover.ledger import Ledger

WATCH_FILE = "watch.json"  # in the folder of the ledger; written by services/prober/failover_watch.py
PULSE_S = 5.0  # the longest time between two writings
SILENCE = timedelta(seconds=4 * PULSE_S)
EXTERNAL = "external"  # the state where another manager promotes and we only look
UNWATCHED = (
    "no watcher looks at the nodes: the prober does not run (`local up` starts it), failover.standby is null, or the "
    "servers are not on this host"
)


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
        """Whether a dead primary would be failed over now, by us."""
        return self.is_in_order and self.state != EXTERNAL

    @property
    def is_in_order(self) -> bool:
        """Whether nobody needs to look: it is armed, or another manager's primary takes writes."""
        return not self.unarmed and not self.refused

    @property
    def is_by_hand(self) -> bool:
        """Whether only the spec keeps it from being armed: a person starts the failover, and nothing else lacks."""
        return self.unarmed == BY_HAND and not self.refused

    @property
    def sentence(self) -> str:
        if self.refused:
            return f"NOT failed over, and waits for a person: {self.refused}"
        if self.state == EXTERNAL:
            follows = f"; {self.standby} follows" if self.standby is not None else ""
            said = self.unarmed or f"{self.primary} takes writes{follows}"
            return f"only watched: {said} (failover.manager is external: another manager promotes)"
        if self.is_by_hand:
            dies = f"if {self.primary} dies, `synapse-ops failover run` has {self.standby} take writes"
            return f"NOT armed, and waits for a person: {dies} ({BY_HAND})"
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
        return FailoverStatus(UNWATCHED, "", None, None, "", incidents)
    unarmed = str(body.get("unarmed") or "")
    if silence > SILENCE:
        unarmed = f"the watcher has said nothing for {silence.total_seconds():.0f} s: does the stack run?"
    return FailoverStatus(
        unarmed, str(body["state"]), body["primary"], body["standby"], str(body.get("refused") or ""), incidents
    )


def write_watch(state_dir: Path, found: Mapping[str, Any]) -> None:
    """Say what a watcher sees now, whole or not at all; a disk that is full costs the file, not the watcher."""
    folder = Ledger.of(state_dir).folder
    with suppress(OSError):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        making = folder / f"{WATCH_FILE}.making"
        making.write_text(json.dumps({**found, "at": datetime.now(UTC).isoformat()}) + "\n", encoding="utf-8")
        making.replace(folder / WATCH_FILE)


def forget_watch(state_dir: Path) -> None:
    """Say that nobody watches."""
    with suppress(OSError):
        (Ledger.of(state_dir).folder / WATCH_FILE).unlink(missing_ok=True)
