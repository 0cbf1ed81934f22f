"""What a failover of the embedded stack works with: both nodes are on this host, so this process may fence both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from synapse_ops.local.layout import find_layout
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.local.servers.databases import SLOT, DatabaseServers, stack_databases
from synapse_ops.local.state import read_state
from synapse_ops.operations.database.wal_source import SLOT as WAL_SLOT
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.ledger import FOLDER


def embedded_databases(state_dir: Path) -> DatabaseServers | None:
    """Return the servers of the embedded stack in a state directory; None where there is no such stack."""
    layout = find_layout(state_dir)
    if not (layout.data / "db-primary").is_dir():
        return None
    ports = read_state(layout.state_file).ports
    if not {"db-primary", "db-standby", "ops"} <= ports.keys():
        return None
    return stack_databases(layout, ports)


def embedded_place(state_dir: Path) -> FailoverPlace | None:
    """Return what a failover of the embedded stack in a state directory works with; None where there is none."""
    databases = embedded_databases(state_dir)
    if databases is None:
        return None
    layout = databases.layout
    owner = read_state(layout.state_file).owner
    nodes = {"db-primary": databases.primary, "db-standby": databases.standby}
    others = {"db-primary": databases.standby, "db-standby": databases.primary}
    return FailoverPlace(
        controls={
            name: LocalNode(
                name=name,
                server=server,
                kept_folder=layout.root / FOLDER / "wal",
                dies_with_us=owner is not None,
                clone=partial(databases.clone, server, others[name]),
            )
            for name, server in nodes.items()
        },
        application=lambda: conninfo_file(layout).read_text(encoding="utf-8").strip(),
        slots=(SLOT, WAL_SLOT),
    )
