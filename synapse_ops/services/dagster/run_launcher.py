"""Where runs are executed: as processes of the code server, or in a cluster each in a pod of its own (dagster-k8s).

dagster.yaml is the same in every place: SYNAPSE_RUN_LAUNCHER names a YAML file with the configuration of dagster-k8s'
K8sRunLauncher, and without it runs are processes of the code server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import DefaultRunLauncher
from dagster._core.launcher import RunLauncher

from synapse_ops.errors import ConfigError

if TYPE_CHECKING:
    from dagster._serdes import ConfigurableClassData

LAUNCHER_VARIABLE = "SYNAPSE_RUN_LAUNCHER"


class PlaceRunLauncher(DefaultRunLauncher):
    """DefaultRunLauncher, or K8sRunLauncher where SYNAPSE_RUN_LAUNCHER names its configuration."""

    @classmethod
    def from_config_value(  # type: ignore[override]  # it may be a launcher of another class
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> RunLauncher:
        named = os.environ.get(LAUNCHER_VARIABLE)
        return pod_launcher(Path(named), inst_data) if named else cls(inst_data)


def pod_launcher(path: Path, inst_data: ConfigurableClassData | None = None) -> RunLauncher:
    """Return the K8sRunLauncher of a configuration file. Raises ConfigError when it cannot be one."""
    try:
        from dagster_k8s import K8sRunLauncher
        from dagster_k8s.utils import load_kubernetes_config
        from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{LAUNCHER_VARIABLE} asks for a pod per run, and {missing.name} is not installed",
            hint="Install synapse-ops[kubernetes]; the image of deploy/Dockerfile has it.",
        ) from None
    config = launcher_config(path)
    try:
        load_kubernetes_config(
            load_incluster_config=config["load_incluster_config"], kubeconfig_file=config.get("kubeconfig_file")
        )
        config["job_image"] = config.get("job_image") or own_image(config["job_namespace"])
        return K8sRunLauncher(inst_data=inst_data, **config)
    except ConfigException as fault:
        raise ConfigError(
            f"{LAUNCHER_VARIABLE} asks for a pod per run, and this process has no access to Kubernetes: {fault}",
            hint="It needs the token of a service account that may create Jobs (deploy/kubernetes/access.yaml).",
        ) from None


def own_image(namespace: str) -> str:
    """Return the image of the pod that this process runs in: runs have the same. Raises ConfigError when it is unknown.

    An image that is named in a second place is forgotten there when it is updated.
    """
    from kubernetes.client import ApiException, CoreV1Api  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    pod = os.environ.get("HOSTNAME", "")
    try:
        return str(CoreV1Api().read_namespaced_pod(pod, namespace).spec.containers[0].image)
    except (ApiException, HTTPError, ValueError) as fault:
        raise ConfigError(
            f'could not read the image of pod "{pod}" in namespace "{namespace}", which is that of runs: {fault}',
            hint="Its service account must be allowed to get pods; or set `job_image` in run-launcher.yaml.",
        ) from None


def launcher_config(path: Path) -> dict[str, Any]:
    """Return the configuration in a file, with defaults filled in. Raises ConfigError when a field is wrong."""
    from dagster._config import process_config, resolve_to_config_type
    from dagster_k8s import K8sRunLauncher

    schema = K8sRunLauncher.config_type()  # type: ignore[no-untyped-call]
    result = process_config(resolve_to_config_type(schema), read_launcher_file(path))
    if not result.success:
        faults = "; ".join(error.message for error in result.errors or ())
        raise ConfigError(
            f"{path} does not configure a run launcher: {faults}",
            hint="Its fields are those of K8sRunLauncher, as in deploy/kubernetes/run-launcher.yaml.",
        )
    return dict(result.value or {})


def read_launcher_file(path: Path) -> Any:
    """Return what the file says, unchecked and without loading dagster-k8s. Raises ConfigError when it is no YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(
            f"could not read the run launcher's configuration {path}: {fault}",
            hint="deploy/kubernetes/run-launcher.yaml is one.",
        ) from None
