"""The prober in the compose file: what Prometheus scrapes as `synapse_ops`, and what Alertmanager calls.

It waits for no other service, and none waits for it: what is down is what it is there to see.
"""

from __future__ import annotations

from synapse_ops.manifests.compose.service import INTERNAL, OUTSIDE, Service, Size, check, helper_resources, mounted
from synapse_ops.manifests.compose.service import service as hardened
from synapse_ops.manifests.stack.container_spec import SPEC_DIR, SPEC_FILE, STATE_DIR
from synapse_ops.manifests.stack.prober import health_command, prober_command, prober_port, prober_secrets
from synapse_ops.manifests.stack.processes import USER_ID
from synapse_ops.spec import Spec

SPEC_PATH = f"docker/synapse-ops/{SPEC_FILE}"
_SIZE = Size("1", "512M")  # 100 MB by itself; reading a repository of 100,000 objects in a child takes the rest


def prober_service(spec: Spec) -> Service:
    """Return the service. It has a way out, because the object store is never part of the stack."""
    command = prober_command()
    return hardened(
        spec.docker.images.synapse_ops,
        user=f"{USER_ID}:{USER_ID}",
        resources=helper_resources(_SIZE),
        healthcheck=check(("CMD", *health_command(spec)), interval_s=30),
        networks=(INTERNAL, OUTSIDE),
        listens=[prober_port(spec)],
        entrypoint=[command[0]],
        command=list(command[1:]),
        secrets=list(prober_secrets(spec, "compose")),
        volumes=[
            mounted(f"./synapse-ops/{SPEC_FILE}", f"{SPEC_DIR}/{SPEC_FILE}"),
            {"type": "volume", "source": "synapse-ops-state", "target": STATE_DIR},
        ],
    )
