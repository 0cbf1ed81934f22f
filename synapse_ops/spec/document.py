"""The whole spec: every block, each with its defaults, in the order in which `spec show` and the docs print them."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from synapse_ops.spec.block import Block, HttpUrl, StackName, TimeZone
from synapse_ops.spec.blocks.application import Server, Worker
from synapse_ops.spec.blocks.backup import Backup, Drills, Encryption, Objectives, Proof, RetentionRules
from synapse_ops.spec.blocks.cleanup import Cleanup
from synapse_ops.spec.blocks.deployment import Autoscaling, Docker, Kubernetes, Manifests, Resources, Updates
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
    Watch,
)
from synapse_ops.spec.blocks.network import Firewall, Tls
from synapse_ops.spec.blocks.stores import Database, ObjectStore, Qdrant, Redis, Vectors


class Spec(Block):
    """What the operator wants the stack to be. Every block and field is optional."""

    name: StackName = Field(
        "synapse", description="Name of the stack; part of rendered names and of what the UI shows."
    )
    time_zone: TimeZone = Field("UTC", description="Time zone of every schedule.")
    server: Server = Server()
    worker: Worker = Worker()
    database: Database = Database()
    redis: Redis = Redis()
    qdrant: Qdrant = Qdrant()
    vectors: Vectors = Vectors()
    object_store: ObjectStore = ObjectStore()
    docker: Docker = Docker()
    kubernetes: Kubernetes = Kubernetes()
    autoscaling: Autoscaling | None = Autoscaling()
    resources: Resources = Resources()
    manifests: Manifests = Manifests()
    prometheus: Prometheus = Prometheus()
    grafana: Grafana = Grafana()
    logging: Logging = Logging()
    backup: Backup = Backup()
    encryption: Encryption = Encryption()
    retention: RetentionRules = RetentionRules()
    proof: Proof = Proof()
    objectives: Objectives = Objectives()
    drills: Drills = Drills()
    firewall: Firewall = Firewall()
    tls: Tls = Tls()
    failover: Failover = Failover()
    updates: Updates = Updates()
    cleanup: Cleanup = Cleanup()
    health: tuple[HealthCheck, ...] = Field(DEFAULT_HEALTH, description="Endpoints that are probed.")
    health_base_url: HttpUrl | None = Field(
        None, description="What a relative `health.url` is below; null means the `server` block's own address."
    )
    watch: Watch = Watch()
    alerts: tuple[Alert, ...] = Field(DEFAULT_ALERTS, description="Rules that fire while their condition holds.")
    alerting: Alerting = Alerting()


@cache
def default_spec() -> Spec:
    """Return the spec that an empty description means: every default."""
    return Spec()
