"""The prober in the cluster: a StatefulSet of one pod, its spec, its history's volume, the Service of its metrics.

Never two at once: both would ask every server, and Alertmanager's calls would reach one or the other. A StatefulSet's
old pod ends before the new one starts, and the volume takes one pod only. It carries no API token: it asks servers,
not the cluster.
"""

from __future__ import annotations

from typing import Any

from synapse_ops.manifests.kubernetes.objects import (
    Object,
    amounts,
    config_map,
    config_volume,
    container,
    disruption_budget,
    headless_service,
    pod_template,
    secrets_volume,
    service_account,
    service_port,
    stateful_set,
)
from synapse_ops.manifests.stack.container_spec import SPEC_DIR, SPEC_FILE, STATE_DIR
from synapse_ops.manifests.stack.parts import OPS
from synapse_ops.manifests.stack.prober import prober_command, prober_port, prober_secrets, prober_spec_text
from synapse_ops.manifests.stack.probes import FAILURES
from synapse_ops.spec import Spec

METRICS = "metrics"
_STATE = "state"  # the volume of its history
_GRACE_S = 10  # it ends at once
_START_TRIES = 24  # of 5 s


def prober_objects(spec: Spec) -> list[Object]:
    """Return everything of the prober."""
    config = config_map(spec, OPS, {SPEC_FILE: prober_spec_text(spec, "kubernetes")})
    port = prober_port(spec)
    return [
        config,
        service_account(spec, OPS),
        # Dagster's code server and its runs read the prober's history on its node (deploy/kubernetes)
        stateful_set(
            spec, OPS, _pod(spec, config, port), spec.kubernetes.storage.synapse_ops, volume=_STATE, is_shared=True
        ),
        headless_service(spec, OPS, [service_port(METRICS, port)]),
        disruption_budget(spec, OPS),
    ]


def _pod(spec: Spec, config: Object, port: int) -> Object:
    spec_volume, spec_mount = config_volume("spec", config, SPEC_DIR)
    secrets, secrets_mount = secrets_volume(spec, prober_secrets(spec, "kubernetes"))
    command = prober_command()
    prober = container(
        OPS,
        spec.docker.images.synapse_ops,
        {"requests": amounts("50m", "128Mi", "requests"), "limits": amounts("1", "512Mi", "limits")},
        command=[command[0]],
        args=list(command[1:]),
        ports=[{"name": METRICS, "containerPort": port, "protocol": "TCP"}],
        volumeMounts=[spec_mount, secrets_mount, {"name": _STATE, "mountPath": STATE_DIR}],
        startupProbe=_probe("/healthz", port) | {"periodSeconds": 5, "failureThreshold": _START_TRIES},
        livenessProbe=_probe("/healthz", port),
        readinessProbe=_probe("/metrics", port),
    )
    volumes = [spec_volume, secrets]
    return pod_template(spec, OPS, [prober], grace_s=_GRACE_S, volumes=volumes, spread_by_revision=False)


def _probe(path: str, port: int) -> dict[str, Any]:
    """The kubelet calls a pod by its address, which the prober would refuse as a foreign name."""
    get = {"path": path, "port": METRICS, "httpHeaders": [{"name": "Host", "value": f"localhost:{port}"}]}
    return {"httpGet": get, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": FAILURES}
