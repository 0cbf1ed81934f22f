"""Notices that the spec file became a new valid spec. An invalid one changes nothing, however long it stays."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from synapse_ops.errors import ConfigError
from synapse_ops.operations.spec_in_force import read_spec_in_force

_INTERVAL_S = 1.0

log = structlog.get_logger()


class SpecWatch:
    """Looks at one spec file about once a second, and reads it only when it changed on disk."""

    def __init__(self, spec_path: Path, state_dir: Path) -> None:
        self._path = spec_path
        self._state_dir = state_dir
        self._next_look_s = 0.0
        self._seen = self._stamp()
        in_force = read_spec_in_force(spec_path, state_dir).loaded
        self.spec = in_force.spec  # at the start: the labels of alarms must not change while one stands
        self._digest = in_force.digest

    def has_new_spec(self) -> bool:
        """Say whether a spec with other values came into force since the last call."""
        if time.monotonic() < self._next_look_s:
            return False
        self._next_look_s = time.monotonic() + _INTERVAL_S
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            in_force = read_spec_in_force(self._path, self._state_dir)
        except ConfigError as fault:
            log.warning("there is no valid spec, kept or new", fault=fault.message)
            return False
        if in_force.fault is not None:
            log.warning("the spec is not valid, the last valid one stays in force", fault=in_force.fault.message)
        changed = in_force.loaded.digest != self._digest
        self._digest = in_force.loaded.digest
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return what changes when the file is saved, by writing or by renaming; None while it is absent."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
