"""What this host's kernel says about files and limits, as our errors: a full disk is no bug of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synapse_ops.errors import ConfigError, HostFailed, SynapseOpsError

_ANOTHER_PLACE = "or name another directory with --state-dir, --work-dir or SYNAPSE_STATE_DIR."
_ROOM = (
    "Free space on the file system of that path: `synapse-ops cleanup --plan` works on a full disk; `df -h` and `df -i`"
    " show what is left."
)
_RIGHTS = f"Give the user of this command the right to write there, {_ANOTHER_PLACE}"
_PATH = f"Correct the path, {_ANOTHER_PLACE}"

# errno -> our error, what to do
_CAUSES: dict[int, tuple[type[SynapseOpsError], str]] = {
    errno.ENOSPC: (HostFailed, _ROOM),
    errno.EDQUOT: (HostFailed, _ROOM),
    errno.EFBIG: (HostFailed, "Raise the limit of the size of files (`ulimit -f`)."),
    errno.EIO: (HostFailed, "See the kernel's log (`dmesg`): the disk or its connection fails."),
    errno.EMFILE: (HostFailed, "Raise the limit of open files (`ulimit -n`)."),
    errno.ENFILE: (HostFailed, "The whole host has too many open files: see `sysctl fs.file-nr`."),
    errno.ENOMEM: (HostFailed, "The host has no memory left: end what is not needed, and run it again."),
    errno.EAGAIN: (HostFailed, "The host makes no further process or thread: see `ulimit -u` and the memory."),
    errno.ESTALE: (HostFailed, "The file system was exported or mounted anew: mount it again."),
    errno.ENXIO: (HostFailed, _PATH),
    errno.EACCES: (ConfigError, _RIGHTS),
    errno.EPERM: (ConfigError, _RIGHTS),
    errno.EROFS: (ConfigError, f"The file system is mounted read-only: mount it for writing, {_ANOTHER_PLACE}"),
    errno.ENOENT: (ConfigError, _PATH),
    errno.ENOTDIR: (ConfigError, _PATH),
    errno.EISDIR: (ConfigError, _PATH),
    errno.EEXIST: (ConfigError, _PATH),
    errno.ELOOP: (ConfigError, _PATH),
    errno.ENAMETOOLONG: (ConfigError, _PATH),
    errno.EINVAL: (ConfigError, _PATH),
}


def host_error(error: OSError, below: Path | None = None) -> SynapseOpsError | None:
    """Return what an error of the kernel about a file or a limit means; None for others, such as a network's.

    below: where the files lie: a write that fails does not name its file.
    """
    kind, hint = _CAUSES.get(error.errno or 0, (None, ""))
    if kind is None or (error.filename is None and kind is ConfigError):  # an argument of ours, not a person's path
        return None
    what = "could not go on" if below is None else f'could not write below "{below}"'
    if error.filename is not None:
        what = f'could not use "{os.fsdecode(error.filename)}"'
    return kind(f"{what}: {error.strerror}", hint=hint)


@contextmanager
def host_errors(below: Path) -> Iterator[None]:
    """Turn the kernel's errors about files and limits inside the block into ours; below: as in `host_error`."""
    try:
        yield
    except OSError as error:
        known = host_error(error, below)
        if known is None:
            raise
        raise known from error
