"""Before a node starts as the primary: whether its timeline was ended, by the ledger here and by the repository.

The marker in the data directory is asked by `PgServer` itself. It is lost where a data directory is put back from a
copy; the ledger is lost where the state directory is. The claim in the repository outlives both. A store that is away
ends no start: both nodes and the ledger are on this host, and an outage of the store must not become one of the
database.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from synapse_ops.domain.failover.incident import ended_by
from synapse_ops.errors import SynapseOpsError
from synapse_ops.local.layout import StackLayout
from synapse_ops.operations.failover.claims import holder_of
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.repository import open_repository
from synapse_ops.spec import load_spec
from synapse_ops.systems.postgres.control_file import control_data, timeline_to_write
from synapse_ops.systems.postgres.server import RECOVERY_SIGNAL, PgServer
from synapse_ops.systems.s3.store import StoreAccess

STORE_WAIT_S = 10.0  # for the embedded store, which starts at the same time


def fence_if_ended(node: PgServer, layout: StackLayout, access: StoreAccess, store_is_over: threading.Event) -> None:
    """Write the fence marker of the incident that ended the timeline which the node would go on writing.

    A standby, and a copy that is about to recover onto a new timeline, go on writing none. store_is_over: the embedded
    store is ready, or will not be.
    """
    if node.is_standby() or node.is_running() or (node.data_dir / RECOVERY_SIGNAL).exists():
        return
    with suppress(SynapseOpsError):  # a control file that cannot be read: the server's own start names it
        control = control_data(node.data_dir, node.tools, node.identity)
        cluster = control["Database system identifier"], timeline_to_write(control)
        holder = _holder(layout, access, cluster, store_is_over)
        incident = ended_by(node.data_dir.name, cluster, Ledger.of(layout.root).incidents(), holder)
        if incident:
            node.write_fence(incident)


def _holder(
    layout: StackLayout, access: StoreAccess, cluster: tuple[str, int], store_is_over: threading.Event
) -> str | None:
    """Return whose claim of the timeline's end the repository holds; None: nobody's, or it cannot be asked."""
    if not layout.spec_file.exists() or not store_is_over.wait(STORE_WAIT_S):  # at the first start there is no claim
        return None
    try:
        url = load_spec(layout.spec_file).spec.backup.database.destination
        return holder_of(open_repository(url, access), *cluster)
    except SynapseOpsError:
        return None
