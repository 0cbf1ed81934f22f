"""Renders what keeps log and temporary files small on hosts without the log chain: logrotate and tmpfiles.d."""

from __future__ import annotations

from datetime import timedelta

from synapse_ops.manifests.document import Document, text_document
from synapse_ops.manifests.units import whole_seconds
from synapse_ops.spec import Spec

LOGROTATE_PATH = "hosts/logrotate.conf"
TMPFILES_PATH = "hosts/tmpfiles.conf"
READS = frozenset(["cleanup", "logging"])
_DAY = timedelta(days=1)


def render_host_logs(spec: Spec) -> tuple[Document, ...]:
    return (
        text_document(LOGROTATE_PATH, _logrotate(spec), READS),
        text_document(TMPFILES_PATH, _tmpfiles(spec), frozenset(["cleanup"])),
    )


def _logrotate(spec: Spec) -> str:
    """Return the rules: one file a day, as many as the retention has days. Programs need not be told to reopen."""
    cleanup = spec.cleanup
    paths = [*spec.logging.paths, *(f"{root.rstrip('/')}/*.log" for root in cleanup.log_roots)]
    days = max(1, cleanup.logs.retention // _DAY)
    compressed = ["compress", "delaycompress"] if cleanup.logs.compress else ["nocompress"]
    options = ["daily", f"rotate {days}", f"maxage {days}", *compressed]
    options += ["dateext", "missingok", "notifempty", "copytruncate"]
    names = "\n".join(f'"{path}"' for path in dict.fromkeys(paths))
    return f"{names} {{\n" + "".join(f"    {option}\n" for option in options) + "}\n"


def _tmpfiles(spec: Spec) -> str:
    """Return the rules: `e` cleans an existing directory by age and makes none."""
    cleanup = spec.cleanup
    if not cleanup.temp_roots and not cleanup.log_roots:
        return "# cleanup.temp_roots and cleanup.log_roots are empty: nothing is removed\n"
    lines = ["# type path mode user group age"]
    for roots, age in ((cleanup.temp_roots, cleanup.temp.retention), (cleanup.log_roots, cleanup.logs.retention)):
        lines += [f"e {_path(root)} - - - {_age(age)}" for root in roots]
    return "\n".join(lines) + "\n"


def _path(path: str) -> str:
    """Return a path as tmpfiles.d reads it: % doubled, quoted where a space or a quote stands in it."""
    text = path.replace("%", "%%")
    if any(mark in text for mark in " \"'\\"):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _age(value: timedelta) -> str:
    return f"{value // _DAY}d" if value % _DAY == timedelta(0) else f"{whole_seconds(value)}s"
