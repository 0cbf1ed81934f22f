"""For whom a commit waits: `synchronous_standby_names` as the spec wants it. Pure.

The setting lies in no rendered file: with it a promoted server would wait for its dead partner and acknowledge nothing.
The WAL receiver sets it on whichever node takes writes, for each one once it streams; a promotion empties it first.
Source: PostgreSQL documentation, "Synchronous Replication".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RECEIVER = "synapse-ops wal"  # the application name of the WAL receiver

_NAME = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True, slots=True)
class Synchronous:
    """What is wanted and what is so.

    nodes: names of the spec's nodes. standby, receiver: whether a commit waits for the standby, and for the repository.
    streaming: application names that stream now. setting: as the server has it. off: who turned the waiting off, and
    when; empty: nobody did. is_external: another manager of failovers decides; nothing is wanted then.
    """

    nodes: tuple[str, ...]
    standby: bool
    receiver: bool
    streaming: frozenset[str]
    setting: str
    off: str = ""
    is_external: bool = False

    @property
    def is_wanted(self) -> bool:
        return self.standby or self.receiver

    @property
    def awaited(self) -> tuple[str, ...]:
        """Return the names that the setting holds."""
        return names_of(self.setting)

    @property
    def is_ours(self) -> bool:
        """Whether the setting is one that we would have made."""
        names = self.awaited
        return setting_of(names) == self.setting and set(names) <= {*self.nodes, RECEIVER}


def setting_of(names: tuple[str, ...]) -> str:
    """Return the setting by which a commit waits for all of these names."""
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    return f"FIRST {len(names)} ({quoted})" if names else ""


def names_of(setting: str) -> tuple[str, ...]:
    """Return the quoted names of a setting, which are all of one that `setting_of` made."""
    return tuple(name.replace('""', '"') for name in _NAME.findall(setting))


def plan_synchronous(found: Synchronous) -> str:
    """Return the setting that should be.

    Each one is awaited from when it first streams. It stays when it does not any more: then commits stand still, as
    the spec wants. While the spec wants none, a setting of somebody else's stays. Another manager's may look like ours;
    one that names the receiver is left of an earlier spec.
    """
    if found.is_external and RECEIVER not in found.awaited:
        return found.setting
    if found.off:
        return ""
    if not found.is_wanted:
        return "" if found.is_ours else found.setting
    known = found.streaming | (set(found.awaited) if found.is_ours else set())
    names = [name for name in found.nodes if found.standby and name in known]
    if found.receiver and RECEIVER in known:
        names.append(RECEIVER)
    return setting_of(tuple(names))


def unprotected(found: Synchronous) -> str:
    """Return why a commit that is acknowledged now may be lost with the primary, or why none is; empty: all is well."""
    if not found.is_wanted:
        return ""
    if found.off:
        return f"commits wait for the primary's disk alone, {found.off}; `synapse-ops wal sync on` ends that"
    missing = []
    if found.standby and not set(found.nodes) & set(found.awaited):
        missing.append("the standby")
    if found.receiver and RECEIVER not in found.awaited:
        missing.append("the repository")
    if missing:
        names = " and ".join(missing)
        return f"commits do not wait for {names} yet: what is acknowledged may be lost with the primary"
    away = [name for name in found.awaited if name not in found.streaming]
    if away:
        names = " and ".join(away)
        return (
            f"commits stand still: they wait for {names}, which does not stream; `synapse-ops wal sync off` ends that"
        )
    return ""
