"""Every probe of a stack: those of health, and whether failover is armed, which health may not import."""

from __future__ import annotations

from synapse_ops.operations.failover.armed import armed_probe
from synapse_ops.operations.health.asker import Probe
from synapse_ops.operations.health.probes import probes_of
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.probe_clients import HttpClients


def stack_probes(stack: Stack, clients: HttpClients, *, is_embedded: bool) -> tuple[Probe, ...]:
    """Return all probes. is_embedded: the database's nodes are those of the embedded stack, so that we fail over."""
    spec = stack.spec
    is_asked = is_embedded and spec.failover.is_ours and spec.failover.automatic and "replication" in spec.watch.servers
    return (*probes_of(stack, clients), *((armed_probe(stack),) if is_asked else ()))
