"""The rendered stack of deploy/kubernetes/infrastructure.yaml on the real node, with an object store beside it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ruamel.yaml import YAML

from synapse_ops.systems.s3.store import StoreAccess
from tests.cluster.applied import Applied, make_secrets, rendered
from tests.cluster.control_plane import PROGRAMS, Object
from tests.cluster.node import POD_IMAGE, Node, save_program
from tests.cluster.store import start_store

AVAILABLE_TIMEOUT_S = 420
BUCKET = "backups"
CLIENT = "client"
# the exporter of PostgreSQL takes a password with a space for a malformed address, and does not start
PASSWORDS = {
    f"{name}-password": f"{name}-of:the@tests'" for name in ("postgres", "database", "replication", "monitoring")
}
NAMESPACE = "synapse"
SPEC = Path(__file__).parents[2] / "deploy" / "kubernetes" / "infrastructure.yaml"
# what two cores can run at once: the limits are those of the spec, requests and times are small
CHANGES: Mapping[str, Any] = {
    "server": {"timeout": "5s"},
    "logging": {"elasticsearch": []},
    "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
    "watch": {"timeout": "15s", "store_interval": "15s"},
    "cleanup": {"schedule": "* * * * *"},
    "health": [
        {"name": "api", "url": "/health", "interval": "10s", "timeout": "5s"},
        {"name": "db", "url": "/health/db", "interval": "10s", "timeout": "10s"},
    ],
}


@dataclass(frozen=True)
class Stack:
    """spec: what was rendered, without its name."""

    node: Node
    applied: Applied
    store: StoreAccess
    spec: Mapping[str, Any]

    @property
    def namespace(self) -> str:
        return self.applied.namespace

    def pod(self, part: str) -> str:
        """Return the name of the first pod of a part."""
        return str(self.applied.pods(part)[0]["metadata"]["name"])

    def execute(self, part: str, container: str, *argv: str) -> str:
        """Run a command in a part's first pod, and return what it writes."""
        return self.node.execute(self.namespace, self.pod(part), *argv, container=container)

    def sql(self, part: str, statement: str, database: str = "postgres") -> str:
        """Ask a node of PostgreSQL as its superuser, in its own container."""
        command = 'PGPASSWORD=$(cat /run/secrets/postgres-password) psql -h localhost -U postgres -XAtw -d "$1" -c "$2"'
        return self.execute(part, "postgres", "bash", "-c", command, "ask", database, statement).strip()

    def get(self, url: str) -> str:
        """Return what the client is answered. Fails for a status of 400 and above."""
        return self.node.execute(CLIENT, CLIENT, "/pod", "get", url)

    def processes(self, pod: Object) -> dict[str, list[int]]:
        """Return the processes of a pod's containers, as the host numbers them, by the container's name."""
        found: dict[str, list[int]] = {}
        for status in pod["status"]["containerStatuses"]:
            identity = status["containerID"].rpartition("/")[2]
            listed = {
                int(pid)
                for file in self.node.ground.cgroup.glob(f"**/{identity}/cgroup.procs")
                for pid in file.read_text().split()
            }
            found[status["name"]] = sorted(listed)
        return found

    def await_available(self) -> None:
        """Wait until every Deployment and StatefulSet is what it is to be."""
        waiting = ("wait", "--timeout=100s", "--all")
        deadline = time.monotonic() + AVAILABLE_TIMEOUT_S
        for condition in (
            "--for=condition=Available deployments",
            "--for=jsonpath={.status.availableReplicas}=1 statefulsets",
        ):
            while True:
                with contextlib.suppress(AssertionError):
                    self.applied.kubectl(*waiting, *condition.split())
                    break
                assert time.monotonic() < deadline, self.applied.kubectl("get", "pods")


def start_stack(node: Node, folder: Path, images: Path) -> Stack:
    """Load images, start an object store, render the spec of deploy/kubernetes, and apply it as docs/deploy.md says."""
    node.load_images(images)
    store = start_store(node, BUCKET)
    spec = spec_of(store)
    applied = rendered(node.plane, folder, "real", spec)
    archive = folder / "exporter.tar"
    save_program(archive, applied.spec.docker.images.node_exporter, PROGRAMS / "node_exporter")
    node.load_images(archive)
    make_secrets(applied, _secrets(node, applied, store))
    applied.apply()
    node.make_namespace(CLIENT)
    node.plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": CLIENT, "namespace": CLIENT},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": CLIENT, "image": POD_IMAGE}],
            },
        }
    )
    stack = Stack(node, applied, store, spec)
    stack.await_available()
    return stack


def spec_of(store: StoreAccess) -> dict[str, Any]:
    """Return the spec of deploy/kubernetes with what the tests change: the images are those of the example."""
    own: dict[str, Any] = YAML(typ="safe").load(SPEC)
    del own["name"], own["docker"]
    return (
        own
        | CHANGES
        | {
            "object_store": own["object_store"] | {"endpoint": store.endpoint},
            "kubernetes": own["kubernetes"] | {"namespace": NAMESPACE},
        }
    )


def _secrets(node: Node, applied: Applied, store: StoreAccess) -> dict[str, str | bytes]:
    """Return what the files hold that the rendered commands read."""
    names = (applied.folder / "tls" / "certificate-names.txt").read_text().split()
    certificate, key = node.plane.authority.issue("stack", *names)
    admin = quote(PASSWORDS["postgres-password"], safe="")
    keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
    verified = "sslmode=verify-full&sslrootcert=/run/secrets/ca.crt"
    return PASSWORDS | {
        "ca.crt": node.plane.authority.file.read_bytes(),
        "tls.crt": certificate.read_bytes(),
        "tls.key": key.read_bytes(),
        "webhook-token": "of the tests",
        "database-admin-url": f"postgresql://postgres:{admin}@synapse-db-primary/?{verified}",
        "object-store-credentials": "\n".join(("[default]", *(f"{name} = {value}" for name, value in keys.items()))),
    }


def sockets_of(pids: list[int]) -> Iterator[tuple[int, str, int]]:
    """Yield each TCP connection in the network namespace of processes: own port, the other's address and port."""
    lines: list[str] = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended; another of the same container is asked
            lines = [
                line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
            ]
            break
    for line in lines:
        own, other, state = line.split()[1:4]
        if state in ("01", "06"):  # established, or ended a moment ago; the headings have words there
            address, port = other.split(":")
            yield int(own.split(":")[1], 16), _address(address), int(port, 16)


def _address(digits: str) -> str:
    """Return an IPv4 address from /proc/net/tcp, or from the last word of an IPv4-mapped one in /proc/net/tcp6."""
    return ".".join(str(int(each, 16)) for each in reversed(re.findall("..", digits[-8:])))
