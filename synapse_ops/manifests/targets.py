"""Every target that is rendered: its name is that of its asset, its reads are the spec/<block> assets it depends on.

A new target is one line here; that `reads` is exactly what its renderer touches is proven by a test, not by care.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from synapse_ops.manifests.compose.target import READS as COMPOSE_READS
from synapse_ops.manifests.compose.target import render_compose
from synapse_ops.manifests.docker import READS as DOCKER_READS
from synapse_ops.manifests.docker import render_docker
from synapse_ops.manifests.document import Document
from synapse_ops.manifests.kubernetes.target import READS as KUBERNETES_READS
from synapse_ops.manifests.kubernetes.target import render_kubernetes
from synapse_ops.manifests.monitoring.targets import MONITORING
from synapse_ops.manifests.servers.firewall import READS as FIREWALL_READS
from synapse_ops.manifests.servers.firewall import render_firewall
from synapse_ops.manifests.servers.postgres import READS as POSTGRES_READS
from synapse_ops.manifests.servers.postgres import render_postgres
from synapse_ops.manifests.servers.redis_and_qdrant import READS_QDRANT, READS_REDIS, render_qdrant, render_redis
from synapse_ops.manifests.servers.tls import READS as TLS_READS
from synapse_ops.manifests.servers.tls import render_tls
from synapse_ops.manifests.services_target import render_services
from synapse_ops.manifests.stack.container_spec import READS as SERVICES_READS
from synapse_ops.spec import Spec


@dataclass(frozen=True, slots=True)
class Target:
    """render is pure. module: the renderer's, for the code version. description: what an operator reads in the UI."""

    name: str
    render: Callable[[Spec], tuple[Document, ...]]
    reads: frozenset[str]
    module: str
    description: str


_HERE = __name__.rpartition(".")[0]

TARGETS: tuple[Target, ...] = (
    Target(
        "dockerfile", render_docker, DOCKER_READS, f"{_HERE}.docker", "Image of API and worker, and what it leaves out."
    ),
    Target("compose_file", render_compose, COMPOSE_READS, f"{_HERE}.compose.target", "The whole stack on one host."),
    Target(
        "kubernetes_manifests",
        render_kubernetes,
        KUBERNETES_READS,
        f"{_HERE}.kubernetes.target",
        "Everything that runs in the cluster, and the flows that it has there.",
    ),
    Target(
        "prober_config",
        render_services,
        SERVICES_READS,
        f"{_HERE}.services_target",
        "Prober and WAL receiver: what each runs from, and the spec with the addresses that are valid there.",
    ),
    Target(
        "postgres_config",
        render_postgres,
        POSTGRES_READS,
        f"{_HERE}.servers.postgres",
        "postgresql.conf and pg_hba.conf of both nodes, and the URL that finds the one that takes writes.",
    ),
    Target(
        "redis_config", render_redis, READS_REDIS, f"{_HERE}.servers.redis_and_qdrant", "The configuration of Redis."
    ),
    Target(
        "qdrant_config",
        render_qdrant,
        READS_QDRANT,
        f"{_HERE}.servers.redis_and_qdrant",
        "Qdrant's configuration file.",
    ),
    Target(
        "firewall_rules",
        render_firewall,
        FIREWALL_READS,
        f"{_HERE}.servers.firewall",
        "The host firewall, for nftables.",
    ),
    Target(
        "tls_config", render_tls, TLS_READS, f"{_HERE}.servers.tls", "nginx and haproxy, and the certificate's names."
    ),
    *(Target(*row) for row in MONITORING),
)
