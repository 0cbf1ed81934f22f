"""How the application is packaged, run and updated: `docker`, `kubernetes`, `autoscaling`, `resources`, `updates`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from synapse_ops.spec.block import (
    Block,
    BucketUrl,
    Cores,
    Duration,
    DurationOrZero,
    ImageName,
    Percent,
    Port,
    Schedule,
    Size,
    TextForm,
)
from synapse_ops.spec.cron import Cron

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
KubernetesName = Annotated[str, TextForm(_LABEL, "a name of at most 63 lower-case letters, digits and -", "synapse")]
HostName = Annotated[
    str,
    TextForm(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", "a host name in lower case, or *.example.org", "api.example.org"),
]
RelativePath = Annotated[
    str,
    TextForm(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*",
        "a path below the build context: letters, digits, _ . - and /",
        "requirements.lock",
    ),
]
ModuleName = Annotated[
    str, TextForm(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", "a Python module such as app.worker", "app.worker")
]
EntryPoint = Annotated[
    str,
    TextForm(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "MODULE:NAME, as uvicorn takes it", "app.main:app"),
]


class Images(Block):
    """What the other containers run; name@sha256:... pins one to its bytes."""

    postgres: ImageName = Field("postgres:17.10-bookworm", description="PostgreSQL, primary and standby.")
    redis: ImageName = Field("redis:8.2-bookworm", description="Redis.")
    qdrant: ImageName = Field("qdrant/qdrant:v1.18.3-unprivileged", description="Qdrant.")
    synapse_ops: ImageName = Field("synapse-ops:latest", description="This tool's own image.")
    nginx: ImageName = Field(
        "nginx:1.28-bookworm", description="Reverse proxy that ends TLS in front of the application."
    )
    prometheus: ImageName = Field("prom/prometheus:v3.5.0", description="Prometheus.")
    alertmanager: ImageName = Field("prom/alertmanager:v0.28.1", description="Alertmanager.")
    grafana: ImageName = Field("grafana/grafana:11.6.4", description="Grafana.")
    blackbox_exporter: ImageName = Field("prom/blackbox-exporter:v0.27.0", description="Prober of `health`.")
    node_exporter: ImageName = Field("prom/node-exporter:v1.9.1", description="Metrics of the host.")
    postgres_exporter: ImageName = Field(
        "prometheuscommunity/postgres-exporter:v0.17.1", description="Metrics of PostgreSQL."
    )
    redis_exporter: ImageName = Field(
        "oliver006/redis_exporter:v1.74.0-alpine",
        description="Metrics of Redis; compose's health check needs its wget.",
    )
    elasticsearch: ImageName = Field("elasticsearch:8.19.2", description="Elasticsearch.")
    logstash: ImageName = Field("logstash:8.19.2", description="Logstash.")
    kibana: ImageName = Field("kibana:8.19.2", description="Kibana.")
    filebeat: ImageName = Field("elastic/filebeat:8.19.2", description="Filebeat.")


class Docker(Block):
    """The image and the compose file."""

    base_image: ImageName = Field("python:3.11-slim", description="Image that the application's image is built from.")
    requirements: RelativePath = Field(
        "requirements.lock", description="Lock file with hashes that the image installs, in the build context."
    )
    source: RelativePath = Field("app", description="Package of the application, in the build context.")
    application: EntryPoint = Field("app.main:app", description="ASGI application that the API serves.")
    worker_module: ModuleName = Field("app.worker", description="Module that the worker runs, with `python -m`.")
    images: Images = Images()


class KubernetesService(Block):
    """How the application is reached from outside the cluster."""

    port: Port = Field(80, description="Port of the Service.")
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        "ClusterIP", description="Type of the Service; the other two are a way in without TLS beside `entry`."
    )


class Entry(Block):
    """How HTTPS reaches the Service: an Ingress, or a Gateway with its HTTPRoute."""

    kind: Literal["ingress", "gateway", "none"] = Field("ingress", description="Which of the two is rendered.")
    class_name: KubernetesName | None = Field(
        None,
        description="IngressClass or GatewayClass; null is the cluster's default Ingress, `synapse` for a Gateway.",
    )
    hosts: tuple[HostName, ...] = Field((), description="Host names that are served; empty is every one.")
    tls_secret: KubernetesName | None = Field(
        None, description="Secret of type kubernetes.io/tls with the certificate; null is `<name>-tls`."
    )
    controller_namespace: KubernetesName = Field(
        "ingress-controller", description="Namespace whose pods may reach the application, for its network policy."
    )


class KubernetesStores(Block):
    """Which data stores run in the cluster; `auto` runs one whose `host` is localhost."""

    database: Literal["auto", "cluster", "elsewhere"] = Field("auto", description="PostgreSQL.")
    redis: Literal["auto", "cluster", "elsewhere"] = Field("auto", description="Redis.")
    qdrant: Literal["auto", "cluster", "elsewhere"] = Field("auto", description="Qdrant.")


class Storage(Block):
    """Volumes in the cluster."""

    class_name: KubernetesName | None = Field(None, description="StorageClass; null is the cluster's default.")
    database: Size = Field(
        100 << 30,
        ge=1 << 20,
        description="Volume of each PostgreSQL node; on hosts and in compose the least space that it has. Bounds WAL.",
    )
    redis: Size = Field(10 << 30, ge=1 << 20, description="Volume of Redis.")
    qdrant: Size = Field(50 << 30, ge=1 << 20, description="Volume of Qdrant.")
    synapse_ops: Size = Field(2 << 30, ge=1 << 20, description="Volume of the prober's history.")


class Kubernetes(Block):
    """The Deployment and its Service."""

    namespace: KubernetesName | None = Field(None, description="Namespace of every object; null is `name`.")

    replicas: int = Field(3, ge=1, le=10_000, description="Pods; ignored beside `autoscaling`.")
    image: ImageName = Field("synapse-api:latest", description="The application's image.")
    service: KubernetesService = KubernetesService()
    worker_replicas: int = Field(2, ge=1, le=10_000, description="Pods of the background worker.")
    entry: Entry = Entry()
    stores: KubernetesStores = KubernetesStores()
    storage: Storage = Storage()
    monitoring_namespace: KubernetesName = Field(
        "monitoring", description="Namespace whose pods may read metrics, for the network policies."
    )
    pull_secret: KubernetesName | None = Field(None, description="Secret with the registry's credentials.")


class Manifests(Block):
    """Releases of rendered documents: where they are kept."""

    destination: BucketUrl = Field("s3://backups/releases/", description="Where releases are kept, by their digest.")


class Autoscaling(Block):
    """The HorizontalPodAutoscaler; `null` instead of the block keeps `kubernetes.replicas` fixed."""

    min_replicas: int = Field(2, ge=1, le=10_000, description="Fewest pods.")
    max_replicas: int = Field(10, ge=1, le=10_000, description="Most pods.")
    target_cpu_utilization: Percent = Field(70, description="Mean CPU use to keep, in percent of `resources.requests`.")
    cooldown_period: DurationOrZero = Field(
        timedelta(seconds=300), description="Stabilization time before pods are removed."
    )


class ResourceLimits(Block):
    """The most that one pod may use."""

    cpu: Cores = Field(Decimal(2), gt=0, description="CPU cores.")
    memory: Size = Field(4 << 30, ge=1, description="Memory; a pod that needs more is killed.")


class ResourceRequests(Block):
    """What is set aside for one pod."""

    cpu: Cores = Field(Decimal("0.5"), gt=0, description="CPU cores.")
    memory: Size = Field(1 << 30, ge=1, description="Memory.")


class Resources(Block):
    """CPU and memory of one pod, and of one service in compose. There Prometheus, Elasticsearch and Logstash may use
    half of the memory, Grafana and Kibana a quarter.
    """

    limits: ResourceLimits = ResourceLimits()
    requests: ResourceRequests = ResourceRequests()


class Updates(Block):
    """The maintenance window in which new releases are rolled out."""

    schedule: Schedule = Field(Cron("0 2 * * 0"), description="When the window opens, in `time_zone`.")
    max_unavailable: int = Field(
        1, ge=0, le=10_000, description="Pods that may be down at once during a rollout; one always stays."
    )
    timeout: Duration = Field(timedelta(seconds=600), description="A rollout not ready by then has failed.")
    rollback: bool = Field(True, description="Whether a failed rollout is rolled back automatically.")
