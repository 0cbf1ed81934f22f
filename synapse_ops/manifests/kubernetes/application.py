"""API and worker in the cluster: Deployments, the API's Service and autoscaler, their budgets."""

from __future__ import annotations

from typing import Any

from synapse_ops.manifests.kubernetes.objects import (
    Object,
    amounts,
    container,
    disruption_budget,
    headless_service,
    part_resources,
    pod_template,
    secrets_volume,
    selector,
    service_account,
    service_port,
    thing,
)
from synapse_ops.manifests.stack.flows import ANYONE, inbound
from synapse_ops.manifests.stack.parts import API, API_PODS, WORKER, object_name
from synapse_ops.manifests.stack.probes import (
    FAILURES,
    PERIOD_S,
    START_LIMIT,
    TIMEOUT_S,
    Probe,
    liveness,
    liveness_failures,
    readiness,
)
from synapse_ops.manifests.stack.processes import (
    DRAIN_S,
    api_command,
    api_grace_s,
    application_secrets,
    environment,
    log_rotation_command,
    worker_command,
    worker_grace_s,
)
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOG_DIR, WORKER_METRICS_PORT

HTTP, METRICS = "http", "metrics"  # names of ports; Services and policies refer to them
_CALM_S = 10  # a pod that falls over at once never counts as available
_START_PERIOD_S = 5
_ROTATED_KIB = 32 << 10  # with its former part a file takes 64 MiB and what is written in ten seconds


def _settings(spec: Spec) -> list[Object]:
    """Return their environment, in the pod itself: scanners take addresses and paths in a ConfigMap for secrets."""
    told = environment(spec, "kubernetes") | {"SYNAPSE_WORKER_METRICS_PORT": str(WORKER_METRICS_PORT)}
    return [{"name": name, "value": _unexpanded(value)} for name, value in told.items()]


def api_objects(spec: Spec) -> list[Object]:
    """Return everything of the API."""
    command = api_command(spec)
    live, ready = liveness(spec), readiness(spec)
    probes = {
        "startupProbe": _start_probe(live),
        "livenessProbe": _probe(live) | {"failureThreshold": liveness_failures(spec)},
        "readinessProbe": _probe(ready),
    }
    pod = _pod(
        spec,
        API,
        ports=[{"name": HTTP, "containerPort": spec.server.port, "protocol": "TCP"}],
        command=[command[0]],
        args=[_unexpanded(part) for part in command[1:]],
        grace_s=api_grace_s(spec),
        lifecycle={"preStop": {"sleep": {"seconds": DRAIN_S}}},
        **probes,
    )
    scaled, fewest = spec.autoscaling, spec.kubernetes.replicas
    objects = [
        service_account(spec, API),
        _deployment(spec, API, pod, fewest=scaled.min_replicas if scaled else fewest, is_scaled=scaled is not None),
        _service(spec),
        # the API's own Service balances: a scrape through it would meet another pod each time, with other counters
        headless_service(spec, API, [service_port(HTTP, spec.server.port)], name=object_name(spec, API_PODS)),
        disruption_budget(spec, API),
    ]
    return [*objects, _autoscaler(spec)] if scaled else objects


def worker_objects(spec: Spec) -> list[Object]:
    """Return everything of the worker."""
    command = worker_command(spec)
    port = {"tcpSocket": {"port": METRICS}, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": FAILURES}
    answers = {
        "httpGet": {"path": "/metrics", "port": METRICS},
        "periodSeconds": 15,
        "timeoutSeconds": 5,
        "failureThreshold": FAILURES,
    }
    pod = _pod(
        spec,
        WORKER,
        ports=[{"name": METRICS, "containerPort": WORKER_METRICS_PORT, "protocol": "TCP"}],
        command=[command[0]],
        args=[_unexpanded(part) for part in command[1:]],
        grace_s=worker_grace_s(spec),
        startupProbe=port | {"periodSeconds": _START_PERIOD_S, "failureThreshold": _start_tries(_START_PERIOD_S)},
        livenessProbe=port,
        readinessProbe=answers,
    )
    return [
        service_account(spec, WORKER),
        _deployment(spec, WORKER, pod, fewest=spec.kubernetes.worker_replicas),
        headless_service(spec, WORKER, [service_port(METRICS, WORKER_METRICS_PORT)]),
        disruption_budget(spec, WORKER),
    ]


def _pod(spec: Spec, part: str, *, grace_s: int, **more: Any) -> Object:
    volume, mount = secrets_volume(spec, (*application_secrets(spec), "ca.crt"))
    logs = {"name": "logs", "emptyDir": {"sizeLimit": "1Gi"}}
    app = container(
        part,
        spec.kubernetes.image,
        part_resources(spec),
        env=_settings(spec),
        volumeMounts=[mount, {"name": "logs", "mountPath": LOG_DIR}],
        **more,
    )
    return pod_template(spec, part, [app, _log_rotation(spec)], grace_s=grace_s, volumes=[volume, logs])


def _log_rotation(spec: Spec) -> Object:
    """Return what keeps the log files from filling their directory, for which the kubelet would evict the pod. What
    must be kept goes to standard output, which the cluster ships and rotates.
    """
    return container(
        "log-rotation",
        spec.kubernetes.image,
        {"requests": amounts("10m", "16Mi", "requests"), "limits": amounts("100m", "64Mi", "limits")},
        command=log_rotation_command(_ROTATED_KIB),
        volumeMounts=[{"name": "logs", "mountPath": LOG_DIR}],
        livenessProbe={"exec": {"command": ["test", "-d", LOG_DIR]}, "periodSeconds": 60, "timeoutSeconds": 10},
        readinessProbe={"exec": {"command": ["test", "-w", LOG_DIR]}, "periodSeconds": 60, "timeoutSeconds": 10},
    )


def _unexpanded(argument: str) -> str:
    """Kubernetes expands $(NAME) in arguments; $$( is a plain $(."""
    return argument.replace("$(", "$$(")


def _probe(probe: Probe | None) -> Object:
    if probe is None:
        asked: Object = {"tcpSocket": {"port": HTTP}}
    else:
        asked = {"httpGet": {"path": probe.path, "port": HTTP}}
    timeout_s = TIMEOUT_S if probe is None else probe.timeout_s
    return asked | {"periodSeconds": PERIOD_S, "timeoutSeconds": timeout_s, "failureThreshold": FAILURES}


def _start_probe(probe: Probe | None) -> Object:
    """Ask often until the first success: a pod is ready seconds after it can be, not at the next slow probe."""
    base = _probe(probe)
    period_s = max(_START_PERIOD_S, base["timeoutSeconds"])
    return base | {"periodSeconds": period_s, "failureThreshold": _start_tries(period_s)}


def _start_tries(period_s: int) -> int:
    return max(FAILURES, whole_seconds(START_LIMIT) // period_s)


def _deployment(spec: Spec, part: str, pod: Object, *, fewest: int, is_scaled: bool = False) -> Object:
    """fewest: pods that there are at least. A rollout leaves one of them: where there is one alone, its successor comes
    first. is_scaled: an autoscaler decides; a rendered number would undo its decision at each apply.
    """
    deadline_s = max(2, whole_seconds(spec.updates.timeout))
    body: Object = {} if is_scaled else {"replicas": fewest}
    body |= {
        "revisionHistoryLimit": 5,
        "progressDeadlineSeconds": deadline_s,
        "minReadySeconds": min(_CALM_S, deadline_s - 1),
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": min(spec.updates.max_unavailable, fewest - 1), "maxSurge": 1},
        },
        "selector": {"matchLabels": selector(spec, part)},
        "template": pod,
    }
    return thing(spec, "Deployment", "apps/v1", part, spec=body)


def _service(spec: Spec) -> Object:
    wanted = spec.kubernetes.service
    body: Object = {
        "type": wanted.type,
        "selector": selector(spec, API),
        "ports": [{"name": HTTP, "port": wanted.port, "targetPort": HTTP, "protocol": "TCP"}],
    }
    if wanted.type != "ClusterIP":
        body["externalTrafficPolicy"] = "Local"  # keeps the client's address, which the network policy judges
    if wanted.type == "LoadBalancer":
        sources = [flow.source for flow in inbound(spec) if flow.port == wanted.port]
        if sources and not set(sources) & set(ANYONE):
            body["loadBalancerSourceRanges"] = sources
    return thing(spec, "Service", "v1", API, spec=body)


def _autoscaler(spec: Spec) -> Object:
    wanted = spec.autoscaling
    if wanted is None:
        raise ValueError("no autoscaling")
    cpu = {"type": "Utilization", "averageUtilization": wanted.target_cpu_utilization}
    calm_s = min(3600, whole_seconds(wanted.cooldown_period, least=0))  # the API's own limit
    return thing(
        spec,
        "HorizontalPodAutoscaler",
        "autoscaling/v2",
        API,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": object_name(spec, API)},
            "minReplicas": wanted.min_replicas,
            "maxReplicas": wanted.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": cpu}}],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": calm_s,
                    "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
                },
            },
        },
    )
