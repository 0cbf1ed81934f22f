"""`<state_dir>/recovery/<id>/recovery.json`: how far each recovery is, on disk before the next part of it begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synapse_ops.domain.recovery.recovery_record import RecoveryRecord
from synapse_ops.errors import PlanChanged, Refused
from synapse_ops.operations.backup.restoring import flush_directory
from synapse_ops.systems.host.file_lock import held_lock

FOLDER = "recovery"
FILE = "recovery.json"


@dataclass(frozen=True)
class Journal:
    """The recoveries of a state directory. Reading needs no lock."""

    folder: Path

    @classmethod
    def of(cls, state_dir: Path) -> Journal:
        return cls(state_dir / FOLDER)

    def records(self) -> tuple[RecoveryRecord, ...]:
        """Return all recoveries, oldest first; what cannot be read is none."""
        found = []
        for path in sorted(self.folder.glob(f"*/{FILE}")):
            try:
                found.append(RecoveryRecord.from_json(json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return tuple(found)

    def find(self, digest: str) -> RecoveryRecord:
        """Return the recovery that a person approves. Raises PlanChanged with the newest digest that there is."""
        prepared = [one for one in self.records() if one.is_prepared]
        found = next((one for one in prepared if one.digest == digest), None)
        if found is None:
            newest = f"newest: {prepared[-1].digest}, of recovery {prepared[-1].id}" if prepared else "there is none"
            raise PlanChanged(
                f'no recovery has the digest "{digest}"',
                detail=newest,
                hint="`synapse-ops recover --plan` prepares one and prints its digest.",
            )
        return found

    def write(self, record: RecoveryRecord) -> None:
        """Replace the document of a recovery, whole or not at all, so that a crash right after cannot lose it."""
        folder = self.folder / record.id
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        making = folder / f"{FILE}.making"
        with making.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record.as_json(), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        making.replace(folder / FILE)
        flush_directory(folder)

    def add(self, record: RecoveryRecord, step: str, facts: Mapping[str, Any]) -> RecoveryRecord:
        """Write what a step came to, and return the recovery with it."""
        after = record.with_step(step, facts)
        self.write(after)
        return after

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock of those who recover; raises Refused while another one does."""
        path = self.folder / "lock"
        taken = Refused(f"another process recovers {self.folder.parent}", hint=f"Which one? fuser {path}")
        with held_lock(path, taken):
            yield
