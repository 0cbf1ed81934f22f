"""Which terminal asked for the stack: when it is closed, the stack goes down too, unless it was asked to stay.

What is watched is the terminal's session leader (the shell of the window, of the ssh login, of the tmux pane): it ends
when its terminal is closed, and its end can be seen from another session without holding the terminal open.
"""

from __future__ import annotations

import contextlib
import os

import psutil

from synapse_ops.systems.local_processes import ProcessMark

_WRAPPERS = {"sudo", "su", "doas", "script"}  # they open a terminal of their own for one command


def terminal_session() -> ProcessMark | None:
    """Return the session leader of the terminal that we were called from; None without one (CI, cron, a service).

    A wrapper's session (sudo with its own terminal) is looked through to the one it was called from. A command that is
    itself the leader (`docker exec -it`) has no terminal that would outlive it: None.
    """
    if not _has_terminal():
        return None
    leader = os.getsid(0)
    with contextlib.suppress(psutil.Error, OSError):
        while psutil.Process(leader).name() in _WRAPPERS:
            parent = psutil.Process(leader).ppid()
            if parent <= 1:
                return None
            leader = os.getsid(parent)
        return None if leader == os.getpid() else ProcessMark.of(leader)
    return None


def _has_terminal() -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
        return True
    return False
