"""What a failover of the embedded stack works with: both nodes are on this host, so this process may fence both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from synapse_ops.local.credentials import read_or_make_password
from synapse_ops.local.layout import find_layout
from synapse_ops.local.node_control import LocalNode
from synapse_ops.local.servers.api import conninfo_file
from synapse_ops.local.servers.databases import SLOT, DatabasePasswords, DatabaseServers, database_servers
from synapse_ops.local.state import read_state
from synapse_ops.operations.database.wal_source import SLOT as WAL_SLOT
from synapse_ops.operations.failover.control import FailoverPlace
from synapse_ops.operations.failover.ledger import FOLDER
from synapse_ops.systems.postgres.programs import find_pg_tools, tools_for

POSTGRES_MAJOR = 17


def embedded_databases(state_dir: Path) -> DatabaseServers | None:
    """Return the servers of the embedded stack in a state directory; None where there is no such stack."""
    layout = find_layout(state_dir)
    if not (layout.data / "db-primary").is_dir():
        return None
    ports = read_state(layout.state_file).ports
    if not {"db-primary", "db-standby", "ops"} <= ports.keys():
        return None
    passwords = DatabasePasswords(
        superuser=read_or_make_password(layout.secrets, "postgres.password"),
        app=read_or_make_password(layout.secrets, "synapse_user.password"),
        replication=read_or_make_password(layout.secrets, "synapse_replication.password"),
        ops=read_or_make_password(layout.secrets, "ops-password"),
    )
    tools = tools_for(layout.identity, find_pg_tools(POSTGRES_MAJOR), layout.programs)
    return database_servers(layout, tools, ports, passwords)


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
