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
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.backup.ages import data_time
from synapse_ops.domain.recovery.recoverability import as_json
from synapse_ops.errors import SynapseOpsError

if TYPE_CHECKING:
    from synapse_ops.domain.recovery.recoverability import Recoverability
    from synapse_ops.operations.backup_kinds import BackupKind
    from synapse_ops.operations.recovery.recoverability import Catalogs

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
    """Return for each repository its subjects: the times of the newest backup and proof, and what can be restored."""
    from synapse_ops.operations.backup_kinds import kinds_of
    from synapse_ops.operations.recovery.recoverability import Catalogs, read_recoverability
    from synapse_ops.operations.spec_in_force import read_spec_in_force
    from synapse_ops.operations.stack import Stack

    stack = Stack(read_spec_in_force(spec_path, state_dir).loaded, state_dir)
    catalogs = Catalogs(stack)
    restorable = read_recoverability(stack, datetime.now(UTC), read=catalogs.read)
    return {kind.word: _told(kind, catalogs, restorable) for kind in kinds_of(stack.spec)}


def _told(kind: BackupKind, catalogs: Catalogs, restorable: Recoverability) -> dict[str, Any]:
    try:
        catalog = catalogs.read(kind)
    except SynapseOpsError as fault:
        return {"error": fault.message}
    subjects: dict[str, dict[str, Any]] = {}
    for row in restorable.of(kind.word).rows:
        entries = catalog.of_subject(row.subject)  # the newest first
        proven = max((entry.proven_at for entry in entries if entry.proven_at is not None), default=None)
        subjects[row.subject] = {
            "backup_at": data_time(entries[0]).isoformat() if entries else None,
            "proven_at": proven.isoformat() if proven is not None else None,
            "restore": as_json(row),
        }
    return {"subjects": subjects}


if __name__ == "__main__":
    print(json.dumps(protection(Path(sys.argv[1]), Path(sys.argv[2]))))
