"""Where the embedded stack keeps what: every path of the state directory, and which servers may read it.

    <state_dir>/state.json            what runs (local/state.py)
                infrastructure.yaml   the spec of this stack
                ca.crt                what clients verify the servers' certificate against
                secrets/              passwords and addresses, files of mode 0600, ours only
                data/<server>/        one folder per server, owned by the identity that servers run as
                logs/<server>.log
                temp/                 temporary files of the stand-in application
                programs/             copies of server programs, only where that identity cannot enter the originals

As root, servers run under another identity. Where that one cannot enter the state directory (a home of mode 0700), the
whole of it lives under /var/lib/synapse-ops/<id> and the state directory is a link to it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.errors import ConfigError, Refused
from synapse_ops.systems.host.processes import ServerIdentity, make_private_dir, reachable_by, server_identity

FAR_ROOT = Path("/var/lib/synapse-ops")
COLD_FREE_BYTES = 1024**3  # two clusters with their WAL, a clone and the store: 0.4 GiB, and space to work
WARM_FREE_BYTES = 200 * 1024**2


@dataclass(frozen=True)
class StackLayout:
    """The folders of one stack. root: the real place; state_dir: as the operator named it, absolute, maybe a link."""

    state_dir: Path
    root: Path
    identity: ServerIdentity | None

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def authority(self) -> Path:
        """The certificate that clients and standbys verify the servers against; public."""
        return self.root / "ca.crt"

    @property
    def programs(self) -> Path:
        return self.root / "programs"

    @property
    def state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "stack.lock"

    @property
    def spec_file(self) -> Path:
        return self.root / "infrastructure.yaml"

    def log(self, server: str) -> Path:
        return self.logs / f"{server}.log"


def find_layout(state_dir: Path) -> StackLayout:
    """Return the layout of a state directory as it stands; makes nothing."""
    named = Path(os.path.abspath(state_dir))  # noqa: PTH100 - resolve() would follow the link that we may have to remove
    return StackLayout(named, named.resolve(), server_identity())


def make_layout(state_dir: Path) -> StackLayout:
    """Make the folders, and the link where servers need another place; safe to repeat.

    Raises ConfigError when the state directory is something else, Refused when the disk is nearly full.
    """
    identity = server_identity()
    named = Path(os.path.abspath(state_dir))  # noqa: PTH100
    if named.exists() and not named.is_dir():
        raise ConfigError(f'state directory "{named}" is a file', hint="Name another one with --state-dir.")
    _check_free_space(StackLayout(named, named.resolve(), identity))
    if not named.is_symlink():
        try:
            named.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f'cannot make the state directory "{named}": {error.strerror}', hint="Name another with --state-dir."
            ) from error
        if not reachable_by(identity, named):
            _move_far(named)
    layout = StackLayout(named, named.resolve(), identity)
    layout.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    layout.logs.mkdir(mode=0o755, exist_ok=True)
    layout.temp.mkdir(mode=0o700, exist_ok=True)
    make_private_dir(layout.secrets, None)
    make_private_dir(layout.data, identity)
    return layout


def far_root(named: Path) -> Path:
    """Return the place under /var/lib for a state directory; the same for the same path."""
    return FAR_ROOT / hashlib.sha256(os.fsencode(named)).hexdigest()[:12]


def _move_far(named: Path) -> None:
    target = far_root(named)
    for folder in (FAR_ROOT, target):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.chmod(0o755)
    (target / "belongs-to").write_text(f"{named}\n")
    for entry in named.iterdir():  # caches and the like that were made before the stack
        if not (target / entry.name).exists():
            shutil.move(entry, target / entry.name)
    if any(named.iterdir()):
        raise ConfigError(
            f'state directory "{named}" cannot be moved to {target}: both hold {next(named.iterdir()).name}',
            hint=f"Keep one of the two: remove {named} or {target}.",
        )
    named.rmdir()
    named.symlink_to(target, target_is_directory=True)


def _check_free_space(layout: StackLayout) -> None:
    is_cold = not (layout.data / "db-primary").exists()
    needed = COLD_FREE_BYTES if is_cold else WARM_FREE_BYTES
    place = next(place for place in (layout.root, *layout.root.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise Refused(
            f"could not start the embedded stack: {free // 1024**2} MiB free, {needed // 1024**2} MiB needed",
            detail=f"on the file system of {layout.root}",
            hint="Free some space, or name a state directory on another disk with --state-dir.",
        )
