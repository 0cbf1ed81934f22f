"""What a failover of the embedded stack works with: both nodes are on this host, so this process may fence both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from synapse_ops.errors import Refused
from synapse_ops.local.embedded_stack import stack_status
from synapse_ops.local.layout import find_layout
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.local.servers.databases import SLOT, DatabaseServers, stack_databases
from synapse_ops.local.state import read_state
from synapse_ops.operations.database.wal_source import SLOT as WAL_SLOT
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.ledger import FOLDER
from synapse_ops.systems.host.processes import ProcessMark, processes_in


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


def primary_processes(state_dir: Path) -> tuple[str, list[ProcessMark]]:
    """Return the name of the node that takes writes and its processes, the postmaster first. Raises Refused."""
    databases = embedded_databases(state_dir.resolve())
    if databases is None or not stack_status(state_dir).servers:
        raise Refused(f"no embedded stack is in {state_dir}", hint="`synapse-ops local up` starts one.")
    leader = databases.roles()[0]
    postmaster = leader.mark()
    if postmaster is None:
        raise Refused(f"{leader.data_dir.name} does not run", hint="`synapse-ops local status` shows the servers.")
    others = [mark for mark in processes_in(leader.data_dir) if mark != postmaster]
    return leader.data_dir.name, [postmaster, *others]
