"""A file that holds space for the day when its disk is full: once it is removed, what must be written finds room.

Whoever filled the disk may fill this too. Until then the state "the disk is full" is stored and shown: without it the
last pages and verdicts, which say that all is well, would be all that there is.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

_LEAST_FREE = 8  # times the size: on a smaller disk the reserve would itself be what fills it


class DiskReserve:
    """The reserve of one directory."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.path = directory / "reserve"
        self._size_bytes = size_bytes

    @property
    def is_held(self) -> bool:
        return self.path.exists()

    def hold(self) -> bool:
        """Take the space where it is not taken and there is plenty; return whether it is held. Never raises OSError."""
        try:
            if self.is_held:
                return True
            if shutil.disk_usage(self.path.parent).free < _LEAST_FREE * self._size_bytes:
                return False
            descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the space back, if there is any. Never raises OSError."""
        with suppress(OSError):
            self.path.unlink()


def is_full(fault: BaseException) -> bool:
    """Return whether an error says that the disk, or a quota of it, is full."""
    if isinstance(fault, sqlite3.Error):
        return getattr(fault, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(fault, OSError) and fault.errno in {errno.ENOSPC, errno.EDQUOT}
