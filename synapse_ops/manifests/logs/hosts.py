"""Renders logrotate's rules for `logging.paths`, for hosts without the log chain.

Below `cleanup.log_roots` the cleanup assets compress files, and logrotate only rotates: two programs that compress one
file would take it from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from synapse_ops.manifests.document import Document, text_document
from synapse_ops.spec import Spec

LOGROTATE_PATH = "hosts/logrotate.conf"
READS = frozenset(["cleanup", "logging"])
_DAY = timedelta(days=1)


def render_host_logs(spec: Spec) -> tuple[Document, ...]:
    roots = tuple(f"{root.rstrip('/')}/" for root in spec.cleanup.log_roots)
    cleaned = [path for path in spec.logging.paths if path.startswith(roots)]
    others = [path for path in spec.logging.paths if path not in cleaned]
    logs = spec.cleanup.logs
    text = _rules(others, logs.retention, compress=logs.compress) + _rules(cleaned, logs.retention, compress=False)
    return (text_document(LOGROTATE_PATH, text, READS),)


def _rules(paths: Sequence[str], retention: timedelta, *, compress: bool) -> str:
    """Return the rules: one file a day, as many as the retention has days. Programs need not be told to reopen."""
    if not paths:
        return ""
    days = max(1, retention // _DAY)
    compressed = ["compress", "delaycompress"] if compress else ["nocompress"]
    options = ["daily", f"rotate {days}", f"maxage {days}", *compressed]
    options += ["dateext", "missingok", "notifempty", "copytruncate"]
    names = "\n".join(f'"{path}"' for path in paths)
    return f"{names} {{\n" + "".join(f"    {option}\n" for option in options) + "}\n"
