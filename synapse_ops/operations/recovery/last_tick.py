"""`dagster/last-tick`: touched by a sensor at each tick, so that who stands outside sees a Dagster that hangs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def last_tick_file(state_dir: Path) -> Path:
    """Return the file whose time of change is the last tick."""
    return state_dir / "dagster" / "last-tick"


def touch_last_tick(state_dir: Path) -> None:
    """Say that a sensor ticks now. Without such a folder, or with a full disk, nobody is told."""
    with suppress(OSError):
        last_tick_file(state_dir).touch()
