"""A spec that was rendered and applied to the control plane, as docs/manifests.md says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec import Spec
from synapse_ops.spec.loading import check_text
from tests.cluster.control_plane import ADMIN, DEFAULT_CLASS, PROGRAMS, ControlPlane, Object

AVAILABLE_TIMEOUT_S = 60
_GROUPS = {
    "Service": "api/v1",
    "Deployment": "apis/apps/v1",
    "StatefulSet": "apis/apps/v1",
    "HorizontalPodAutoscaler": "apis/autoscaling/v2",
    "PodDisruptionBudget": "apis/policy/v1",
}


@dataclass(frozen=True)
class Applied:
    """folder: holds kubernetes/ as it was rendered."""

    plane: ControlPlane
    spec: Spec
    namespace: str
    folder: Path

    @property
    def documents(self) -> list[Object]:
        """Every rendered object, in the order in which it is applied."""
        yaml = YAML(typ="safe")
        files = sorted((self.folder / "kubernetes").glob("*.yaml"))
        return [found for file in files for found in yaml.load_all(file)]

    def kubectl(self, *arguments: str | Path, refused: bool = False) -> str:
        return self.plane.kubectl(f"--namespace={self.namespace}", *arguments, refused=refused)

    def apply(self, *options: str) -> None:
        """Apply everything in the rendered order, as docs/manifests.md says."""
        self.plane.kubectl("apply", "--server-side", f"--filename={self.folder / 'kubernetes'}", *options)

    def objects(self) -> dict[str, Object]:
        """Return what the API server holds of it, by kind and name."""
        found = self.plane.objects(f"--filename={self.folder / 'kubernetes'}")
        return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}

    def path(self, kind: str, part: str, below: str = "") -> str:
        """Return the path of the one rendered object of a kind and a part, in the API."""
        name = self.rendered(kind, part)["metadata"]["name"]
        group = _GROUPS[kind]
        return f"/{group}/namespaces/{self.namespace}/{kind.lower()}s/{name}{below}"

    def rendered(self, kind: str, part: str) -> Object:
        """Return the first rendered object of a kind and a part."""
        return next(
            each
            for each in self.documents
            if each["kind"] == kind and each["metadata"]["labels"]["app.kubernetes.io/name"] == part
        )

    def pods(self, part: str) -> list[Object]:
        """Return a part's pods that are not on their way out."""
        found = self.plane.api.get(
            f"/api/v1/namespaces/{self.namespace}/pods", params={"labelSelector": f"app.kubernetes.io/name={part}"}
        ).json()["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def await_available(self) -> None:
        """Wait until every Deployment and StatefulSet is what it is to be."""
        waiting = ("wait", f"--timeout={AVAILABLE_TIMEOUT_S}s", "--all")
        self.kubectl(*waiting, "--for=condition=Available", "deployments")
        if any(each["kind"] == "StatefulSet" for each in self.documents):
            self.kubectl(*waiting, "--for=jsonpath={.status.availableReplicas}=1", "statefulsets")


def rendered(plane: ControlPlane, folder: Path, name: str, changes: Mapping[str, Any]) -> Applied:
    """Render a spec for a namespace of that name, and apply nothing. changes: what differs from the default spec."""
    namespace = "of-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
    kubernetes = {"namespace": namespace} | changes.get("kubernetes", {})
    text = json.dumps({"name": "synapse"} | dict(changes) | {"kubernetes": kubernetes})
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    write_directory(render_bundle(loaded.spec), folder / "rendered")
    return Applied(plane, loaded.spec, kubernetes["namespace"], folder / "rendered")


def rendered_and_applied(plane: ControlPlane, folder: Path, name: str, changes: Mapping[str, Any]) -> Applied:
    """Render a spec for a namespace of its own, make namespace, Secrets and volumes, and apply everything.

    For nodes that run nothing: the Secrets have any content, and the volumes are never mounted.
    """
    applied = rendered(plane, folder, name, changes)
    make_secrets(applied, {})
    plane.apply(*_volumes(applied))
    applied.apply()
    return applied


def make_secrets(applied: Applied, contents: Mapping[str, str | bytes]) -> None:
    """Run the rendered commands as they are. contents: of the files that they read; another has any content."""
    commands = (applied.folder / "kubernetes" / "secrets.txt").read_text()
    folder = applied.folder.with_name("secrets")
    folder.mkdir()
    for name in re.findall(r"--from-file=(\S+)", commands):
        content = contents.get(name, "tests only\n")
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    environment = {"PATH": f"{PROGRAMS}:/usr/bin:/bin", "KUBECONFIG": str(applied.plane.folder / ADMIN)}
    subprocess.run(["sh", "-eu"], input=commands, cwd=folder, env=environment, text=True, check=True, timeout=120)


def _volumes(applied: Applied) -> list[Object]:
    """Return a volume for each claim, as nothing in this cluster provisions volumes."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{applied.namespace}-{each['metadata']['name']}"},
            "spec": {
                "capacity": {"storage": "1Ti"},
                "accessModes": claim["spec"]["accessModes"],
                "storageClassName": claim["spec"].get("storageClassName", DEFAULT_CLASS),
                "claimRef": {
                    "namespace": applied.namespace,
                    "name": f"{claim['metadata']['name']}-{each['metadata']['name']}-0",
                },
                "hostPath": {"path": "/nowhere"},  # no node mounts it
            },
        }
        for each in applied.documents
        if each["kind"] == "StatefulSet"
        for claim in each["spec"]["volumeClaimTemplates"]
    ]
