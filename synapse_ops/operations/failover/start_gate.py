"""Whether a node that does not run may start as the primary, by the ledger and by the repository.

The node itself knows its fence marker and its control file. What it cannot know is that the other node was promoted
meanwhile: a failover claims the end of the old timeline first, and whatever else promoted it, its WAL lies in the
repository on a newer timeline. `local up` asks (local/start_gate.py), and the start scripts of rendered nodes
(manifests/servers/postgres_container.py) ask the prober, which has the repository's keys.
"""

from __future__ import annotations

from synapse_ops.domain.failover.incident import ended_by
from synapse_ops.operations.database.wal_archive import newest_timeline
from synapse_ops.operations.failover.claims import read_holder
from synapse_ops.operations.failover.ledger import Ledger
from synapse_ops.operations.stack import Stack


def refusal(stack: Stack, node: str, cluster: tuple[str, int]) -> str:
    """Return why a node must not go on writing its timeline as the primary, in words; empty: it may.

    cluster: system identifier and timeline of its control file. Raises the store's errors: then it is not known.
    """
    repository = stack.database_repository()
    system_identifier, timeline = cluster
    incident = ended_by(node, cluster, Ledger.of(stack.state_dir).incidents(), read_holder(repository, *cluster))
    if incident:
        return f"its timeline {timeline} was ended by incident {incident}"
    newest = newest_timeline(repository, system_identifier, timeline)
    if newest > timeline:
        return f"it would go on writing timeline {timeline}, and the repository holds WAL of timeline {newest}"
    return ""
