"""What a command shows while the watcher carries out what was asked of it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from synapse_ops.cli.terminal import echo

if TYPE_CHECKING:
    from synapse_ops.domain.failover.incident import Entry
    from synapse_ops.operations.failover.steering import Tell


def shown_since(asked_at: datetime) -> Tell:
    """Return what prints each entry with the seconds since something was asked."""

    def show(entry: Entry) -> None:
        echo(f"{(entry.at - asked_at).total_seconds():6.2f} s  {entry.state}", err=True)

    return show
