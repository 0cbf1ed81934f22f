"""The receiver's lease: of two receivers one writes. It is short, so that a lost host is taken over within seconds."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from typing import Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import LeaseLost
from synapse_ops.operations.backup.lease import Lease, hold_lease
from synapse_ops.operations.database.wal_archive import note_acknowledged
from synapse_ops.operations.repository import Repository

TTL_S = 10.0
RELEASE_S = 5.0


class HeldLease:
    """A lease that is taken again when it was lost while the store did not answer.

    acknowledged: timeline and position up to which its holder has stored WAL; it is noted in the lease, for readers.
    """

    def __init__(self, repository: Repository, name: str) -> None:
        self._repository = repository
        self.acknowledged = (0, Lsn(0))
        self._name = name
        self._held: ExitStack | None = None
        self._lease: Lease | None = None
        self._is_closed = False

    def take(self) -> None:
        """Raises LeaseHeld while another receiver lives, LeaseLost once it is closed, Unreachable without the store."""
        if self._is_closed:
            raise LeaseLost(f'lease "{self._name}" was given up')
        self._release()
        stack = ExitStack()
        owner = f"WAL receiver on {socket.gethostname()}"
        self._lease = stack.enter_context(
            hold_lease(self._repository, self._name, owner=owner, ttl_s=TTL_S, note=self._note)
        )
        self._held = stack
        if self._is_closed:  # meanwhile, while the store gave no answer
            self._release()
            raise LeaseLost(f'lease "{self._name}" was given up')

    def _note(self, before: Any) -> dict[str, Any]:
        return note_acknowledged(before, *self.acknowledged)

    def check(self) -> None:
        """Raise LeaseLost when another receiver may write by now: before every write."""
        if self._lease is None:
            raise LeaseLost(f'lease "{self._name}" is not held')
        self._lease.check()

    def renew(self) -> bool:
        """Take it again if it was lost; True when it was: another receiver may have written meanwhile."""
        try:
            self.check()
        except LeaseLost:
            self.take()
            return True
        return False

    def close(self) -> None:
        """Let go of it for good: whoever still works for this session writes nothing more.

        A store that does not answer is not waited for: the lease ends by itself.
        """
        self._is_closed = True
        releasing = threading.Thread(target=self._release, name="wal-lease-release", daemon=True)
        releasing.start()
        releasing.join(RELEASE_S)

    def _release(self) -> None:
        held, self._held, self._lease = self._held, None, None
        if held is not None:
            held.close()
