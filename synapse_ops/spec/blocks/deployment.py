"""How the application is packaged, run and updated: `docker`, `kubernetes`, `autoscaling`, `resources`, `updates`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Literal

from pydantic import Field

from synapse_ops.spec.block import (
    Block,
    Cores,
    Count,
    Duration,
    DurationOrZero,
    ImageName,
    Percent,
    Port,
    Schedule,
    Size,
)
from synapse_ops.spec.cron import Cron


class Docker(Block):
    """The image and the compose file."""

    base_image: ImageName = Field("python:3.11-slim", description="Image that the application's image is built from.")


class KubernetesService(Block):
    """How the application is reached from outside the cluster."""

    port: Port = Field(80, description="Port of the Service.")
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("LoadBalancer", description="Type of the Service.")


class Kubernetes(Block):
    """The Deployment and its Service."""

    replicas: int = Field(3, ge=1, le=10_000, description="Pods; ignored beside `autoscaling`.")
    image: ImageName = Field("synapse-api:latest", description="The application's image.")
    service: KubernetesService = KubernetesService()


class Autoscaling(Block):
    """The HorizontalPodAutoscaler; `null` instead of the block keeps `kubernetes.replicas` fixed."""

    min_replicas: int = Field(2, ge=1, le=10_000, description="Fewest pods.")
    max_replicas: int = Field(10, ge=1, le=10_000, description="Most pods.")
    target_cpu_utilization: Percent = Field(70, description="Mean CPU use to keep, in percent of `resources.requests`.")
    cooldown_period: DurationOrZero = Field(timedelta(seconds=300), description="Calm time before pods are removed.")


class ResourceLimits(Block):
    """The most that one pod may use."""

    cpu: Cores = Field(Decimal(2), gt=0, description="CPU cores.")
    memory: Size = Field(4 << 30, ge=1, description="Memory; a pod that needs more is killed.")


class ResourceRequests(Block):
    """What is set aside for one pod."""

    cpu: Cores = Field(Decimal("0.5"), gt=0, description="CPU cores.")
    memory: Size = Field(1 << 30, ge=1, description="Memory.")


class Resources(Block):
    """CPU and memory of one pod."""

    limits: ResourceLimits = ResourceLimits()
    requests: ResourceRequests = ResourceRequests()


class Updates(Block):
    """The maintenance window in which new releases are rolled out."""

    schedule: Schedule = Field(Cron("0 2 * * 0"), description="When the window opens, in `time_zone`.")
    max_unavailable: Count = Field(1, le=10_000, description="Pods that may be down at once during a rollout.")
    timeout: Duration = Field(timedelta(seconds=600), description="A rollout not ready by then has failed.")
    rollback: bool = Field(True, description="Whether a failed rollout is undone by itself.")
