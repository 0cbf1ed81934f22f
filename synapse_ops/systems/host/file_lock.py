"""A lock that only one process of this host holds; the kernel lets it go, however that process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synapse_ops.errors import Refused


@contextmanager
def held_lock(path: Path, taken: Refused) -> Iterator[None]:
    """Hold the lock while the block lasts; its file and folder are made where they are missing, and stay.

    taken: raised while another process holds it.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield
