"""The whole spec: every block, each with its defaults, in the order in which `spec show` and the docs print them."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from synapse_ops.spec.block import Block, HttpUrl, StackName, TimeZone
from synapse_ops.spec.blocks.application import Server, Worker
from synapse_ops.spec.blocks.backup import Backup, Encryption, Objectives, Proof, RetentionRules
from synapse_ops.spec.blocks.cleanup import Cleanup
from synapse_ops.spec.blocks.deployment import Autoscaling, Docker, Kubernetes, Resources, Updates
from synapse_ops.spec.blocks.failover import Failover
from synapse_ops.spec.blocks.monitoring import (
    DEFAULT_ALERTS,
    DEFAULT_HEALTH,
    Alert,
    Alerting,
    Grafana,
    HealthCheck,
    Logging,
    Prometheus,
)
from synapse_ops.spec.blocks.network import Firewall, Tls
from synapse_ops.spec.blocks.stores import Database, ObjectStore, Qdrant, Redis, Vectors


class Spec(Block):
    """What the operator wants the stack to be. Every block and field is optional."""

    name: StackName = Field(
        "synapse", description="Name of the stack; part of rendered names and of what the UI shows."
    )
    time_zone: TimeZone = Field("UTC", description="Time zone of every schedule.")
    server: Server = Field(Server(), description="The API process.")
    worker: Worker = Field(Worker(), description="The background worker.")
    database: Database = Field(Database(), description="PostgreSQL.")
    redis: Redis = Field(Redis(), description="Redis, the cache.")
    qdrant: Qdrant = Field(Qdrant(), description="Qdrant, the vector store.")
    vectors: Vectors = Field(Vectors(), description="Which tables feed which collections.")
    object_store: ObjectStore = Field(ObjectStore(), description="The S3 service that holds the backups.")
    docker: Docker = Field(Docker(), description="The image and the compose file.")
    kubernetes: Kubernetes = Field(Kubernetes(), description="The Deployment and its Service.")
    autoscaling: Autoscaling | None = Field(
        Autoscaling(), description="The HorizontalPodAutoscaler; null keeps `kubernetes.replicas` fixed."
    )
    resources: Resources = Field(Resources(), description="CPU and memory of one pod.")
    prometheus: Prometheus = Field(Prometheus(), description="How often is measured.")
    grafana: Grafana = Field(Grafana(), description="Dashboards.")
    logging: Logging = Field(Logging(), description="The way of log lines.")
    backup: Backup = Field(Backup(), description="What is backed up, when, where to, and for how long it is kept.")
    encryption: Encryption = Field(Encryption(), description="Client-side encryption of backups.")
    retention: RetentionRules = Field(RetentionRules(), description="Limits on what an expiry may remove.")
    proof: Proof = Field(Proof(), description="Restore proofs.")
    objectives: Objectives = Field(Objectives(), description="What the stack promises.")
    firewall: Firewall = Field(Firewall(), description="The host firewall; what is not listed is closed.")
    tls: Tls = Field(Tls(), description="Certificate and protocol.")
    failover: Failover = Field(Failover(), description="Failover of PostgreSQL.")
    updates: Updates = Field(Updates(), description="The maintenance window.")
    cleanup: Cleanup = Field(Cleanup(), description="What is tidied away, and where.")
    health: tuple[HealthCheck, ...] = Field(DEFAULT_HEALTH, description="Endpoints that are probed.")
    health_base_url: HttpUrl | None = Field(
        None, description="What a relative `health.url` is below; null means the `server` block's own address."
    )
    alerts: tuple[Alert, ...] = Field(DEFAULT_ALERTS, description="Rules that fire while their condition holds.")
    alerting: Alerting = Field(Alerting(), description="What is done when an alert fires.")


@cache
def default_spec() -> Spec:
    """Return the spec that an empty description means: every default."""
    return Spec()
