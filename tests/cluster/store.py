"""An S3 server in a pod of the node: SeaweedFS, as in the embedded stack, with its data in the pod."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import replace

from synapse_ops.local.servers.s3 import find_weed
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.cluster.control_plane import is_ready
from tests.cluster.node import Node, save_program

NAMESPACE, NAME, PORT = "object-store", "store", 8333
IMAGE = "tests/store:1"
START_TIMEOUT_S = 120.0


def start_store(node: Node, *buckets: str) -> StoreAccess:
    """Run the server, make buckets, and return how pods of any namespace reach it."""
    archive = node.ground.folder / "store.tar"
    save_program(archive, IMAGE, find_weed())
    node.load_images(archive)
    node.make_namespace(NAMESPACE)
    access = StoreAccess(
        endpoint=f"http://{NAME}.{NAMESPACE}.svc.cluster.local:{PORT}",
        access_key="tests",
        secret_key=secrets.token_hex(16),
    )
    credentials = {"accessKey": access.access_key, "secretKey": access.secret_key}
    identity = {"name": "admin", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    keys = base64.b64encode(json.dumps({"identities": [identity]}).encode()).decode()
    labels = {"app": NAME}
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": labels}
    container = {
        "name": NAME,
        "image": IMAGE,
        "args": [
            "-logtostderr=true", "mini", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", f"-s3.port={PORT}",
            "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            "-s3.config=/keys/s3.json",
        ],
        "env": [{"name": "HOME", "value": "/data"}, {"name": "GOMEMLIMIT", "value": "512MiB"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "keys", "mountPath": "/keys"}],
    }  # fmt: skip
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": NAME}}]
    node.plane.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"s3.json": keys}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata,
         "spec": {"selector": labels, "ports": [{"port": PORT}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
         "spec": {"securityContext": {"fsGroup": 10001}, "containers": [container], "volumes": volumes}},
    )  # fmt: skip
    found = node.plane.when(f"/api/v1/namespaces/{NAMESPACE}/pods/{NAME}", is_ready, timeout_s=START_TIMEOUT_S)
    here = replace(access, endpoint=f"http://{found['status']['podIP']}:{PORT}")
    for bucket in buckets:
        ObjectStore(f"s3://{bucket}/", here).create_bucket()
    return access
