"""How old the last backup and the last proof are: read from the repository by a separate process.

Reading a catalog loads boto3 and lists what may be 100,000 objects. In a child this costs the prober no memory, and a
store that hangs is ended with it. `python -m synapse_ops.services.prober.protection SPEC STATE_DIR` prints the
document.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.operations.backup_kinds import BackupKind
    from synapse_ops.operations.stack import Stack

TIMEOUT_S = 300.0  # an interpreter starts, and a large catalog is listed


async def read_protection(spec_path: Path, state_dir: Path) -> Mapping[str, Any] | None:
    """Return what the child printed; None when it did not end in time or was cut. Raises OSError when none starts."""
    argv = [sys.executable, "-m", "synapse_ops.services.prober.protection", str(spec_path), str(state_dir)]
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",  # a process in the folder of the embedded stack's prober would be mistaken for the prober
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await child.communicate()
            found = json.loads(output)
    except (TimeoutError, ValueError):
        return None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    return found if isinstance(found, dict) else None


def protection(spec_path: Path, state_dir: Path) -> dict[str, Any]:
    """Return for each repository its subjects: the time of the newest backup and of the newest proof that passed."""
    return dict(_repositories(spec_path, state_dir))


def _repositories(spec_path: Path, state_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from synapse_ops.operations.backup_kinds import kinds_of
    from synapse_ops.operations.spec_in_force import read_spec_in_force
    from synapse_ops.operations.stack import Stack

    stack = Stack(read_spec_in_force(spec_path, state_dir).loaded, state_dir)
    for kind in kinds_of(stack.spec):
        yield kind.word, _moments(kind, stack)


def _moments(kind: BackupKind, stack: Stack) -> dict[str, Any]:
    from synapse_ops.operations.backup.catalog import read_catalog

    try:
        catalog = read_catalog(kind.repository(stack)).only(kind.name)
    except SynapseOpsError as fault:
        return {"error": fault.message}
    subjects: dict[str, dict[str, str | None]] = {}
    for entry in catalog.backups:  # the newest first
        known = subjects.setdefault(entry.place.subject, {"backup_at": None, "proven_at": None})
        if known["backup_at"] is None:
            known["backup_at"] = (entry.database_time or entry.started_at).isoformat()
        if entry.proven_at is not None and (
            known["proven_at"] is None or entry.proven_at.isoformat() > known["proven_at"]
        ):
            known["proven_at"] = entry.proven_at.isoformat()
    return {"subjects": subjects}


if __name__ == "__main__":
    print(json.dumps(protection(Path(sys.argv[1]), Path(sys.argv[2]))))
