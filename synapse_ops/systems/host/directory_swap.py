"""Puts a whole directory in the place of another in one step, so that a reader never sees half of each."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_THERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def put_in_place(made: Path, place: Path) -> Path | None:
    """Move `made` to `place`, on the same file system. Returns where the former directory is now, None without one.

    Linux swaps the two names in one step (renameat2). Where the file system cannot, the former is moved aside first:
    then a crash between the two steps leaves it beside its place, complete.
    """
    if not os.path.lexists(place):
        made.rename(place)
        return None
    if _exchange(made, place):
        return made
    aside = place.with_name(f".{place.name}.former")
    place.rename(aside)
    made.rename(place)
    return aside


def _exchange(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_THERE:
        return False
    raise OSError(code, os.strerror(code), str(other))
