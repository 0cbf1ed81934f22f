"""The Kubernetes documents, one file a part, in the order in which they are applied."""

from __future__ import annotations

from synapse_ops.manifests.document import Document, text_document, yaml_document
from synapse_ops.manifests.kubernetes.application import api_objects, worker_objects
from synapse_ops.manifests.kubernetes.entry import entry_objects
from synapse_ops.manifests.kubernetes.network import policies
from synapse_ops.manifests.kubernetes.objects import Object, labels, secrets_volume, tls_secret_name
from synapse_ops.manifests.kubernetes.stores import database_objects, qdrant_objects, redis_objects
from synapse_ops.manifests.stack.parts import has_wal_receiver, is_ours, namespace
from synapse_ops.manifests.stack.prober import prober_secrets
from synapse_ops.manifests.stack.wal_receiver import receiver_secrets
from synapse_ops.spec import Spec

READS = frozenset(
    {
        "name", "server", "worker", "database", "redis", "qdrant", "docker", "kubernetes", "autoscaling", "resources",
        "updates", "health", "failover", "tls", "firewall", "backup", "watch", "object_store", "encryption",
    }
)  # fmt: skip


def render_kubernetes(spec: Spec) -> tuple[Document, ...]:
    """Return the documents of everything that runs in the cluster."""
    groups: dict[str, list[Object]] = {
        "00-namespace": [_namespace(spec)],
        "20-network": policies(spec),
    }
    if is_ours(spec, "database", "kubernetes"):
        groups["30-database"] = database_objects(spec)
    if is_ours(spec, "redis", "kubernetes"):
        groups["31-redis"] = redis_objects(spec)
    if is_ours(spec, "qdrant", "kubernetes"):
        groups["32-qdrant"] = qdrant_objects(spec)
    groups["41-api"] = api_objects(spec)
    groups["42-worker"] = worker_objects(spec)
    # by its own name, since other tools judge a custom resource than a built-in kind
    groups["50-gateway" if spec.kubernetes.entry.kind == "gateway" else "50-entry"] = entry_objects(spec)
    documents = [
        yaml_document(f"kubernetes/{name}.yaml", *objects, reads=READS) for name, objects in groups.items() if objects
    ]
    return (*documents, text_document("kubernetes/secrets.txt", _secrets(spec, groups), READS))


def _namespace(spec: Spec) -> Object:
    enforced = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    versions = {f"{key}-version": "latest" for key in enforced}
    metadata = {"name": namespace(spec), "labels": labels(spec, "namespace") | enforced | versions}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _secrets(spec: Spec, groups: dict[str, list[Object]]) -> str:
    """Return which secrets must exist, as the commands that make them from files; found in what was rendered, and in
    what the target of our own services renders.
    """
    wanted: dict[str, set[str]] = {}
    volumes = [secrets_volume(spec, prober_secrets(spec, "kubernetes"))[0]]
    if has_wal_receiver(spec):
        volumes.append(secrets_volume(spec, receiver_secrets(spec, "kubernetes"))[0])
    for found in (each for objects in groups.values() for each in objects):
        volumes += found.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", ())
    for source in (source for volume in volumes for source in volume.get("projected", {}).get("sources", ())):
        items = {item["key"] for item in source["secret"]["items"]}
        wanted.setdefault(source["secret"]["name"], set()).update(items)
    wanted.setdefault(tls_secret_name(spec), set()).update(("tls.crt", "tls.key"))
    lines = [
        "# The namespace, and the Secrets that must exist in it before the rest is applied; contents are yours.",
        f"kubectl create namespace {namespace(spec)}",
    ]
    for name in sorted(wanted):
        files = " ".join(f"--from-file={key}" for key in sorted(wanted[name]))
        kind = " --type=kubernetes.io/tls" if name == tls_secret_name(spec) else ""
        lines.append(f"kubectl --namespace {namespace(spec)} create secret generic {name}{kind} {files}")
    return "\n".join(lines)
