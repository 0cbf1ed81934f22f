"""Which addresses are this host's own: no proxy of the environment stands before them."""

from __future__ import annotations

import contextlib
import ipaddress
from urllib.parse import urlsplit


def is_loopback(url: str | None) -> bool:
    """Whether a URL names this host by localhost or a loopback address; None, AWS's own endpoint, does not."""
    with contextlib.suppress(ValueError):  # not a URL, or a host by name
        host = urlsplit(url or "").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False
