"""The WAL receiver in the cluster: a Deployment of one pod, its spec, the Service of its metrics.

The old pod ends before the next one starts. Where two run for a moment, as when a node hangs, the lease in the store
lets one of them write. Away stores and servers make it not ready, and never start it anew.
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
    selector,
    service_account,
    service_port,
    thing,
)
from synapse_ops.manifests.stack.container_spec import SPEC_DIR, SPEC_FILE, STATE_DIR
from synapse_ops.manifests.stack.parts import WAL_RECEIVER
from synapse_ops.manifests.stack.probes import FAILURES
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.manifests.stack.wal_receiver import (
    ALIVE_PATH,
    GRACE_S,
    READY_PATH,
    receiver_command,
    receiver_secrets,
    receiver_spec_text,
)
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import WAL_METRICS_PORT
from synapse_ops.spec.units import format_size

_METRICS, _STATE = "metrics", "state"
_START_TRIES = 24  # of 5 s
_LOST_NODE_S = 30
_SCRATCH_BYTES = 1 << 30  # a segment that is larger than memory should hold is compressed on the disk


def wal_receiver_objects(spec: Spec) -> list[Object]:
    """Return everything of the receiver."""
    config = config_map(spec, WAL_RECEIVER, {SPEC_FILE: receiver_spec_text(spec, "kubernetes")})
    body = {
        "replicas": 1,
        "revisionHistoryLimit": 5,
        "progressDeadlineSeconds": max(1, whole_seconds(spec.updates.timeout)),
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": selector(spec, WAL_RECEIVER)},
        "template": _pod(spec, config),
    }
    return [
        config,
        service_account(spec, WAL_RECEIVER),
        thing(spec, "Deployment", "apps/v1", WAL_RECEIVER, spec=body),
        headless_service(spec, WAL_RECEIVER, [service_port(_METRICS, WAL_METRICS_PORT)]),
        disruption_budget(spec, WAL_RECEIVER),
    ]


def _pod(spec: Spec, config: Object) -> Object:
    spec_volume, spec_mount = config_volume("spec", config, SPEC_DIR)
    secrets, secrets_mount = secrets_volume(spec, receiver_secrets(spec, "kubernetes"))
    command = receiver_command(spec, "kubernetes")
    disk_bytes = spec.backup.database.wal.spool + _SCRATCH_BYTES
    resources = {"requests": amounts("50m", "128Mi", "requests"), "limits": amounts("1", "512Mi", "limits")}
    resources["limits"]["ephemeral-storage"] = format_size(disk_bytes + (1 << 30))  # the directory counts, and logs
    receiver = container(
        WAL_RECEIVER,
        spec.docker.images.synapse_ops,
        resources,
        command=[command[0]],
        args=list(command[1:]),
        ports=[{"name": _METRICS, "containerPort": WAL_METRICS_PORT, "protocol": "TCP"}],
        volumeMounts=[spec_mount, secrets_mount, {"name": _STATE, "mountPath": STATE_DIR}],
        startupProbe=_probe(ALIVE_PATH) | {"periodSeconds": 5, "failureThreshold": _START_TRIES},
        livenessProbe=_probe(ALIVE_PATH),
        readinessProbe=_probe(READY_PATH),
    )
    state = {"name": _STATE, "emptyDir": {"sizeLimit": format_size(disk_bytes)}}
    return pod_template(
        spec,
        WAL_RECEIVER,
        [receiver],
        grace_s=GRACE_S,
        volumes=[spec_volume, secrets, state],
        spread_by_revision=False,
        tolerations=[_leaves(state) for state in ("not-ready", "unreachable")],
    )


def _leaves(state: str) -> Object:
    """A node that is lost is left after seconds: Kubernetes' own five minutes are commits that are nowhere stored."""
    key = f"node.kubernetes.io/{state}"
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _LOST_NODE_S}


def _probe(path: str) -> dict[str, Any]:
    get = {"path": path, "port": _METRICS}
    return {"httpGet": get, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": FAILURES}
