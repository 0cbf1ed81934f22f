"""Where a little is written when the disk of the state directory is full: a private folder in memory, or elsewhere.

Nothing is kept there that must outlive the host's next start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOM_BYTES = 64 * 1024**2  # a plan of 300 000 files


def make_folder(state_dir: Path, name: str) -> Path:
    """Return a folder that has room: of the state directory, or a spare one where its disk is full; made as needed.

    The state directory's own is returned where nothing has room. Raises OSError.
    """
    own = state_dir / name
    if not _has_room(state_dir):
        for spare in _spares(state_dir):
            if _has_room(spare) and _is_made(spare):
                own = spare / name
                break
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    return own


def known_folders(state_dir: Path, name: str) -> tuple[Path, ...]:
    """Return every folder of that name that is there and ours."""
    spares = (spare for spare in _spares(state_dir) if _is_private(spare))
    return tuple(folder for base in (state_dir, *spares) if (folder := base / name).is_dir())


def _spares(state_dir: Path) -> Iterator[Path]:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:12]
    for base in ("/dev/shm", os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):  # noqa: S108 - private below it
        if base and Path(base).is_dir():
            yield Path(base, f"synapse-ops-{os.getuid()}-{digest}")


def _has_room(place: Path) -> bool:
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free >= ROOM_BYTES


def _is_made(folder: Path) -> bool:
    """Make the folder unless it is there; False where another user's lies under its name."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return _is_private(folder)


def _is_private(folder: Path) -> bool:
    """Return whether this is a directory of ours, and no link, that nobody else may enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
