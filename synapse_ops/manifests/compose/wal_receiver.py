"""The WAL receiver in the compose file. It waits for no other service: it asks until the database is there."""

from __future__ import annotations

from synapse_ops.manifests.compose.service import INTERNAL, OUTSIDE, Service, Size, check, helper_resources, mounted
from synapse_ops.manifests.compose.service import service as hardened
from synapse_ops.manifests.stack.container_spec import SPEC_DIR, SPEC_FILE, STATE_DIR, answers_command
from synapse_ops.manifests.stack.processes import USER_ID
from synapse_ops.manifests.stack.wal_receiver import ALIVE_PATH, GRACE_S, receiver_command, receiver_secrets
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import WAL_METRICS_PORT

SPEC_PATH = f"docker/wal-receiver/{SPEC_FILE}"
_SIZE = Size("1", "512M")  # segments of 64 MiB are compressed in memory


def wal_receiver_service(spec: Spec) -> Service:
    """Return the service, with a way out to the object store. Docker's health says that it answers; whether WAL is
    stored is told by its metrics: what restarts unhealthy containers could not mend a store.
    """
    command = receiver_command(spec, "compose")
    return hardened(
        spec.docker.images.synapse_ops,
        user=f"{USER_ID}:{USER_ID}",
        resources=helper_resources(_SIZE),
        healthcheck=check(("CMD", *answers_command(WAL_METRICS_PORT, ALIVE_PATH)), interval_s=30),
        networks=(INTERNAL, OUTSIDE),
        listens=[WAL_METRICS_PORT],
        entrypoint=[command[0]],
        command=list(command[1:]),
        secrets=list(receiver_secrets(spec, "compose")),
        volumes=[
            mounted(f"./wal-receiver/{SPEC_FILE}", f"{SPEC_DIR}/{SPEC_FILE}"),
            {"type": "volume", "source": "wal-receiver-state", "target": STATE_DIR},
        ],
        stop_grace_period=f"{GRACE_S}s",
    )
