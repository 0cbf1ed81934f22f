"""A bundle as the tests' rules read it: parsed back from its bytes.

Rules read documents, never the code that rendered them: a fault of a renderer must not be repeated by its judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from synapse_ops.manifests.bundle import Bundle
from synapse_ops.manifests.consistency import Finding
from synapse_ops.spec import Spec


class View:
    """A bundle, parsed once."""

    def __init__(self, bundle: Bundle, spec: Spec) -> None:
        self.bundle = bundle
        self.spec = spec

    def text(self, path: str) -> str:
        """Return a document's text, "" where there is none."""
        document = self.bundle.by_path.get(path)
        return "" if document is None else document.text

    def yaml(self, path: str) -> Any:
        """Return the only value of a YAML or JSON document, {} where there is none."""
        text = self.text(path)
        if not text:
            return {}
        return json.loads(text) if path.endswith(".json") else load_yaml(text)[0]

    @cached_property
    def compose(self) -> dict[str, Any]:
        found: dict[str, Any] = self.yaml("docker/compose.yaml")
        return found

    @cached_property
    def objects(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Every Kubernetes object with its document's path."""
        return tuple(
            (str(document.path), found)
            for document in self.bundle.documents
            if document.path.parts[0] == "kubernetes" and document.path.suffix == ".yaml"
            for found in load_yaml(document.text)
        )

    def of_kind(self, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the Kubernetes objects of some kinds, with their paths."""
        return ((path, found) for path, found in self.objects if found.get("kind") in kinds)

    @cached_property
    def workloads(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        return tuple(self.of_kind("Deployment", "StatefulSet"))


Rule = Callable[[View], Iterator[Finding]]


def roles_of(spec: Spec) -> tuple[str, ...]:
    """Return the folders of PostgreSQL's own files: a node each."""
    return ("primary",) if spec.failover.standby is None else ("primary", "standby")


@lru_cache(maxsize=128)
def load_yaml(text: str) -> tuple[Any, ...]:
    """Return the values of a YAML text. Rules share them: many read the same document, and none changes it."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(yaml.load_all(text, loader))


def resolved(source: str) -> str:
    """Return a path relative to docker/ as a path of the bundle."""
    return source.removeprefix("../") if source.startswith("../") else f"docker/{source.removeprefix('./')}"


def targets_of(config: Mapping[str, Any], job_name: str | None = None) -> list[str]:
    """Return host:port of the targets of one job of a prometheus.yml, or of all."""
    found: list[str] = []
    for job in config["scrape_configs"]:
        if job_name in (None, job["job_name"]):
            found += [target for static in job.get("static_configs", ()) for target in static["targets"]]
            found += [f"{name}:{each['port']}" for each in job.get("dns_sd_configs", ()) for name in each["names"]]
    return found


def name_of(found: dict[str, Any]) -> str:
    """Return kind/name as kubectl writes it."""
    return f"{str(found.get('kind', '')).lower()}/{found.get('metadata', {}).get('name', '')}"


def told_in_pods(view: View) -> list[tuple[str, dict[str, str]]]:
    """Return the path and the environment of API and worker in the cluster; what empties their logs is told nothing."""
    found = [
        (path, container)
        for path, workload in view.workloads
        if workload["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/name") in ("api", "worker")
        for container in workload["spec"]["template"]["spec"]["containers"]
        if container["name"] != "log-rotation"
    ]
    return [(path, environment_of(container)) for path, container in found]


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    """Return what a pod's container is told, as the kubelet will have expanded it."""
    return {each["name"]: each.get("value", "").replace("$$(", "$(") for each in container.get("env", ())}
