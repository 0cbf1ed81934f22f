"""One dagster.yaml: where runs are executed comes from the environment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from dagster import DefaultRunLauncher
from dagster._core.launcher import RunLauncher
from dagster._serdes import ConfigurableClassData
from dagster_k8s import K8sRunLauncher

from synapse_ops.errors import ConfigError
from synapse_ops.services.dagster.home import shipped_file
from synapse_ops.services.dagster.run_launcher import LAUNCHER_VARIABLE, launcher_config

SHIPPED = Path(__file__).parents[3] / "deploy" / "kubernetes" / "run-launcher.yaml"


def launcher_of_dagster_yaml() -> RunLauncher:
    """Return what an instance makes of `run_launcher`."""
    named = yaml.safe_load(shipped_file("dagster.yaml").read_text())["run_launcher"]
    return ConfigurableClassData(named["module"], named["class"], "{}").rehydrate(as_type=RunLauncher)


class OnePod(BaseHTTPRequestHandler):
    """Answers as Kubernetes' API does for one pod, and says that there is no other."""

    def do_GET(self) -> None:
        is_it = self.path == "/api/v1/namespaces/synapse/pods/dagster-daemon-1"
        pod = {"kind": "Pod", "spec": {"containers": [{"name": "daemon", "image": "registry.test/synapse-ops:7"}]}}
        body = json.dumps(pod if is_it else {"kind": "Status", "reason": "Forbidden"}).encode()
        self.send_response(200 if is_it else 403)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    """The way to an API that knows one pod."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OnePod) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield written_kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def written_kubeconfig(folder: Path, server: str) -> Path:
    path = folder / "kubeconfig"
    cluster, context = {"server": server}, {"cluster": "c", "user": "u"}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": context}],
                "current-context": "x",
            }
        )
    )
    return path


def test_without_the_variable_runs_are_processes_of_the_code_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)

    assert type(launcher_of_dagster_yaml()).__mro__[1] is DefaultRunLauncher


def test_with_it_each_run_is_a_pod_as_the_file_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kubeconfig: Path
) -> None:
    """The shipped file, but for the way to the cluster, which is that of a pod."""
    path = tmp_path / "run-launcher.yaml"
    path.write_text(
        f"{SHIPPED.read_text()}load_incluster_config: false\nkubeconfig_file: {kubeconfig}\njob_image: a:1\n"
    )
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(path))

    launcher = launcher_of_dagster_yaml()

    assert isinstance(launcher, K8sRunLauncher)
    assert (launcher.job_namespace, launcher.dagster_home, launcher.job_image) == ("synapse", "/opt/dagster", "a:1")
    assert launcher.inst_data is not None  # what a run's pod is told of its instance


def test_runs_have_the_image_of_the_pod_that_launches_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kubeconfig: Path
) -> None:
    """However it was changed: in the file, by kustomize or by Helm."""
    path = tmp_path / "run-launcher.yaml"
    path.write_text(f"{SHIPPED.read_text()}load_incluster_config: false\nkubeconfig_file: {kubeconfig}\n")
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(path))
    monkeypatch.setenv("HOSTNAME", "dagster-daemon-1")
    launcher = launcher_of_dagster_yaml()
    assert isinstance(launcher, K8sRunLauncher)
    monkeypatch.setenv("HOSTNAME", "another-1")

    with pytest.raises(ConfigError, match=r'could not read the image of pod "another-1"') as error:
        launcher_of_dagster_yaml()

    assert launcher.job_image == "registry.test/synapse-ops:7"
    assert "job_image" in error.value.hint


def test_outside_of_a_cluster_the_shipped_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(SHIPPED))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ConfigError, match="no access to Kubernetes") as error:
        launcher_of_dagster_yaml()

    assert "access.yaml" in error.value.hint


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("job_namespac: synapse\n", "job_namespac"),
        ("service_account_name: [a]\n", "service_account_name"),
        ("- a\n", "Expected"),
        ("a: [\n", "could not read"),
        (None, "could not read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "run-launcher.yaml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=named) as error:
        launcher_config(path)

    assert str(path) in str(error.value)
