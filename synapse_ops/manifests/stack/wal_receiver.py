"""What the WAL receiver is in a container: its command, the spec that it reads, the files that it opens.

Its state directory holds nothing that the server and the store do not: WAL on the way is received again. The exception
is the key by which encrypted WAL is compared. A receiver that has another one believes what is stored of the open
segment, and a restored or cloned server would go on with it unseen. In compose the key lies on the volume. In the
cluster every rollout begins with an empty directory, so there it is a secret, where backups are encrypted. A volume
would tie the receiver to the node that holds it: when that hangs, no other may start, and commits are not stored.
"""

from __future__ import annotations

from synapse_ops.manifests.stack.container_spec import (
    DATABASE_ADMIN,
    DATABASE_REPLICATION,
    OBJECT_STORE_CA,
    OBJECT_STORE_CREDENTIALS,
    STACK_CA,
    container_spec,
    container_spec_text,
    service_command,
)
from synapse_ops.manifests.stack.parts import PlaceName
from synapse_ops.manifests.stack.processes import SECRETS_DIR
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import WAL_METRICS_PORT

DIGEST_KEY = "wal-digest-key"
ALIVE_PATH, READY_PATH = "/metrics", "/health"  # away stores and servers must not have it started anew
GRACE_S = 30  # it stores what has arrived, for 10 s at most, and gives its lease back


def receiver_command(spec: Spec, place: PlaceName) -> tuple[str, ...]:
    """Return the receiver's command line in a container."""
    command = (*service_command("wal_receiver"), "--port", str(WAL_METRICS_PORT))
    if DIGEST_KEY in receiver_secrets(spec, place):
        command += ("--digest-key", f"{SECRETS_DIR}/{DIGEST_KEY}")
    return command


def receiver_secrets(spec: Spec, place: PlaceName) -> tuple[str, ...]:
    """Return the names of the files below /run/secrets that it opens, each once; never a decryption key."""
    wanted = {
        OBJECT_STORE_CREDENTIALS: True,
        DATABASE_ADMIN: spec.database.replication is None,
        DATABASE_REPLICATION: spec.database.replication is not None,
        STACK_CA: True,
        OBJECT_STORE_CA: spec.object_store.ca_file is not None,
        DIGEST_KEY: place == "kubernetes" and bool(spec.encryption.recipients),
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def receiver_spec_text(spec: Spec, place: PlaceName) -> str:
    """Return the spec that it is given. A reference to a decryption key leads nowhere there, and it needs none."""
    told = container_spec(spec, place, receiver_secrets(spec, place))
    encryption = told.encryption.model_copy(update={"identity": None})
    return container_spec_text(told.model_copy(update={"encryption": encryption}), "WAL receiver")
