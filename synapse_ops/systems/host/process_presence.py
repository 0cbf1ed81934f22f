"""Which process of which host wrote something, so that this host can check later whether it still lives.

A pid alone identifies nothing: it is reused, another host has the same, a container has its own, a boot starts anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synapse_ops.systems.host.processes import ProcessMark


def presence_of_this_process() -> dict[str, Any]:
    """Return host, boot_id, pid and pid_started_s (seconds since boot) of this process, for a JSON document."""
    mark = ProcessMark.of(os.getpid())
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "pid_started_s": mark.started_s if mark else None,
    }


def has_ended_here(presence: Mapping[str, Any]) -> bool:
    """Whether it was a process of this very host and boot, and has ended. False whenever that is not certain."""
    boot = boot_id()
    if not boot or presence.get("boot_id") != boot or presence.get("host") != socket.gethostname():
        return False
    pid, started_s = presence.get("pid"), presence.get("pid_started_s")
    if not isinstance(pid, int) or not isinstance(started_s, float):
        return False
    return not ProcessMark(pid, started_s).is_alive()


def boot_id() -> str:
    """Return what names this boot of this kernel and pid namespace; empty where the system has no such thing.

    Two containers share a boot but not their pids: a pid that means nothing here must not read as ended.
    """
    try:
        return f"{kernel_boot()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def kernel_boot() -> str:
    """Return what names this boot of this kernel; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
