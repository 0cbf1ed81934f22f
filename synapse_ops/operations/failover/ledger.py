"""`<state_dir>/failover/ledger.jsonl`: what a failover was about to do, on disk before it did it.

A line that was torn by a crash is the last one and is left out: its effect was never begun. Whoever writes holds the
lock of the ledger, so that two watchers never work on one incident.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from synapse_ops.domain.failover.incident import Entry, Incident, incidents_of
from synapse_ops.errors import Refused
from synapse_ops.systems.host.file_lock import held_lock

FOLDER = "failover"
REQUEST_LIFE = timedelta(seconds=30)


@dataclass(frozen=True)
class Pause:
    """Until when nothing is failed over by itself, and why."""

    until: datetime
    reason: str


class Asked(StrEnum):
    """What a person may ask of the watcher."""

    FAILOVER = "failover"
    SWITCHOVER = "switchover"
    ABANDON = "abandon"


@dataclass(frozen=True)
class Request:
    """What a person asks of the watcher: to go on although it refused, to switch over, or to give a promotion up.

    at: when; it is forgotten after REQUEST_LIFE, so that none is carried out at the next outage. accept_loss_bytes:
    None: the spec's limit. end_sessions: of a switchover: long transactions may be ended.
    """

    at: datetime
    what: Asked = Asked.FAILOVER
    accept_loss_bytes: int | None = None
    end_sessions: bool = False


@dataclass(frozen=True)
class Ledger:
    """The ledger of a state directory. Reading needs no lock."""

    folder: Path

    @classmethod
    def of(cls, state_dir: Path) -> Ledger:
        return cls(state_dir / FOLDER)

    @property
    def path(self) -> Path:
        return self.folder / "ledger.jsonl"

    def incidents(self) -> tuple[Incident, ...]:
        """Return all incidents, oldest first."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return ()
        entries = []
        for line in lines:
            try:
                entries.append(Entry.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                continue
        return incidents_of(entries)

    def find(self, incident_id: str) -> Incident:
        """Raises Refused for one that is not there."""
        found = next((one for one in self.incidents() if one.id == incident_id), None)
        if found is None:
            raise Refused(f"the ledger {self.path} has no incident {incident_id}")
        return found

    def append(self, entry: Entry) -> None:
        """Write an entry so that a crash right after cannot lose it. Raises OSError when the disk does not have it."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        data = (json.dumps(entry.as_json(), sort_keys=True) + "\n").encode()
        with self.path.open("ab") as file:
            if file.tell() and not _ends_in_newline(self.path):
                data = b"\n" + data  # behind a torn line, which stays unreadable
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock of those who write; raises Refused while another one does."""
        taken = Refused(
            f"another process works on the failover of {self.folder.parent}",
            hint="`synapse-ops failover status` shows how far it is.",
        )
        with held_lock(self.folder / "lock", taken):
            yield

    def pause(self) -> Pause | None:
        """Return the pause that was set last; it may be over."""
        try:
            body: Any = json.loads((self.folder / "pause.json").read_text(encoding="utf-8"))
            return Pause(datetime.fromisoformat(body["until"]), str(body["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def set_pause(self, pause: Pause | None) -> None:
        """Set or end a pause."""
        if pause is None:
            (self.folder / "pause.json").unlink(missing_ok=True)
        else:
            self._write("pause.json", {"until": pause.until.isoformat(), "reason": pause.reason})

    def ask(self, request: Request) -> None:
        """Leave a request for the watcher."""
        self._write("request.json", {**asdict(request), "at": request.at.isoformat()})

    def take_request(self, now: datetime, what: Asked = Asked.FAILOVER) -> Request | None:
        """Return a person's request of this kind and forget it; None: there is none, or it is too old."""
        path = self.folder / "request.json"
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found = Request(**{**body, "at": datetime.fromisoformat(body["at"]), "what": Asked(body["what"])})
            if found.what is not what:
                return None
            path.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if now - found.at < REQUEST_LIFE else None

    def _write(self, name: str, body: dict[str, Any]) -> None:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        making = self.folder / f"{name}.making"
        making.write_text(json.dumps(body, sort_keys=True) + "\n", encoding="utf-8")
        making.replace(self.folder / name)

    def write_rejoin(self, incident_id: str, facts: dict[str, Any]) -> None:
        """Keep how an old primary came back."""
        self._write(f"rejoin-{incident_id}.json", facts)

    def forget_rejoin(self, incident_id: str) -> None:
        """Have the old primary of an incident rejoined again."""
        (self.folder / f"rejoin-{incident_id}.json").unlink(missing_ok=True)

    def rejoin(self, incident_id: str) -> dict[str, Any] | None:
        """Return how the old primary of an incident came back; None: it did not."""
        try:
            body: dict[str, Any] = json.loads((self.folder / f"rejoin-{incident_id}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return body


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
