"""A place without a network, for servers that run foreign code: a Linux network namespace with nothing in it.

Settings keep a server from listening; only this keeps the code that it runs from calling out. Unix sockets with a path
work across namespaces, so that we still reach the server. Source: network_namespaces(7), unshare(2).
"""

from __future__ import annotations

import ctypes
import sys

_CLONE_NEWNET = 0x40000000

try:
    _unshare = ctypes.CDLL(None, use_errno=True).unshare if sys.platform == "linux" else None
except (OSError, AttributeError):
    _unshare = None


def enter_empty_network() -> bool:
    """Move the calling *thread*, and what it starts from now on, out of the network; False where that is not allowed.

    It needs root with CAP_SYS_ADMIN, and there is no way back: call it in a thread made for the purpose.
    """
    return _unshare is not None and _unshare(_CLONE_NEWNET) == 0
