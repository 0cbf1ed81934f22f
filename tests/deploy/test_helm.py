"""deploy/helm says to the Dagster Helm chart what dagster.yaml and deploy/kubernetes say: setting by setting.

Nothing here needs Helm or the chart: chart_keys.txt lists the keys that it knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from dagster_k8s.models import k8s_snake_case_dict
from kubernetes import client  # type: ignore[import-untyped]

from synapse_ops import __version__
from synapse_ops.services.dagster.compute_logs import COMPUTE_LOGS_VARIABLE, stored_logs
from synapse_ops.services.dagster.run_launcher import launcher_config
from tests.deploy.test_kubernetes import DOCKERFILE, ENVIRONMENT, FOLDER, KUSTOMIZATION, PODS, RESOURCES, ROOT

HELM = ROOT / "deploy" / "helm"
VALUES = yaml.safe_load((HELM / "values.yaml").read_text(encoding="utf-8"))
OURS = yaml.safe_load((HELM / "kustomization.yaml").read_text(encoding="utf-8"))
INSTANCE = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
LAUNCHER = launcher_config(FOLDER / "run-launcher.yaml")
CHART_LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
DAEMON = VALUES["dagsterDaemon"]
SUBCHART = VALUES["dagster-user-deployments"]
[CODE_SERVER] = SUBCHART["deployments"]
PASSWORD = "DAGSTER_PG_PASSWORD"
GENERATED = ("run_monitoring", "sensors", "schedules", "concurrency", "retention", "telemetry")
"""Settings of dagster.yaml that the chart has keys for; the others are compared one by one below."""


def snake(found: Any) -> Any:
    """Return a part of the values with its keys as dagster.yaml has them."""
    if isinstance(found, Mapping):
        return {
            re.sub(r"(?<=[a-z])([A-Z])", lambda hit: f"_{hit[1].lower()}", key): snake(each)
            for key, each in found.items()
        }
    return [snake(each) for each in found] if isinstance(found, list) else found


def keys(found: Any, path: str = "") -> Iterator[str]:
    """Return the path of every value that is no mapping, as in chart_keys.txt."""
    if isinstance(found, Mapping) and found:
        for key, each in found.items():
            yield from keys(each, f"{path}.{key}".removeprefix("."))
    elif isinstance(found, list) and found and all(isinstance(each, Mapping) for each in found):
        for each in found:
            yield from keys(each, f"{path}[]")
    else:
        yield path


@cache
def chart_keys() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the chart's keys, and those below which Kubernetes' or Dagster's own are."""
    lines = (Path(__file__).parent / "chart_keys.txt").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    opened = tuple(line.removesuffix(".**") for line in found if line.endswith(".**"))
    return frozenset(found), opened


def is_the_chart_s(key: str) -> bool:
    known, opened = chart_keys()
    return key in known or any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in opened)


def test_the_chart_knows_every_key() -> None:
    """It ignores a key that it does not know: a limit with a typing error would be no limit."""
    assert [key for key in keys(VALUES) if not is_the_chart_s(key)] == []
    assert not is_the_chart_s("dagsterDaemon.runMonitoring.pollIntervallSeconds")
    assert not is_the_chart_s("dagster-user-deployments.deployments[].strategy.type")


@pytest.mark.parametrize("name", GENERATED)
def test_a_setting_is_that_of_dagster_yaml(name: str) -> None:
    of_chart = {
        **{key: DAEMON[key] for key in ("runMonitoring", "sensors", "schedules")},
        **{key: VALUES[key] for key in ("concurrency", "retention", "telemetry")},
    }
    found = snake(of_chart)[name]
    if name in {"concurrency", "retention"}:
        assert found.pop("enabled") is True  # the chart's own switch
    if name == "concurrency":  # the chart passes each limit on as it is
        found["runs"]["tag_concurrency_limits"] = VALUES["concurrency"]["runs"]["tagConcurrencyLimits"]

    assert found == INSTANCE[name]


def test_what_the_chart_has_no_key_for_is_said_in_dagster_s_own_words() -> None:
    coordinator = DAEMON["runCoordinator"]

    assert (coordinator["enabled"], coordinator["type"]) == (True, "CustomRunCoordinator")
    assert coordinator["config"]["customRunCoordinator"] == INSTANCE["run_coordinator"]
    assert DAEMON["runRetries"] == INSTANCE["run_retries"]
    assert VALUES["additionalInstanceConfig"] == {"nux": INSTANCE["nux"]}


def test_no_setting_of_dagster_yaml_is_left_out() -> None:
    """A new one has to be said to the chart too."""
    elsewhere = {"run_coordinator", "run_retries", "nux", "storage", "compute_logs", "run_launcher"}

    assert set(INSTANCE) == {*GENERATED, *elsewhere}


def test_the_storage_is_dagster_s_own_database_with_the_scheme_of_dagster_yaml() -> None:
    """All but the pool of connections, for which the chart has no key."""
    wanted = INSTANCE["storage"]["custom"]["config"]["postgres_db"]
    found = VALUES["postgresql"]

    assert (found["enabled"], VALUES["generatePostgresqlPasswordSecret"]) == (False, False)
    assert (found["postgresqlScheme"], found["postgresqlParams"]) == (wanted["scheme"], wanted["params"])
    assert {
        "DAGSTER_PG_HOST": found["postgresqlHost"],
        "DAGSTER_PG_PORT": str(found["service"]["port"]),
        "DAGSTER_PG_USER": found["postgresqlUsername"],
        "DAGSTER_PG_DB": found["postgresqlDatabase"],
    }.items() <= ENVIRONMENT.items()
    [password] = [
        each["valueFrom"]["secretKeyRef"]
        for each in PODS["dagster-daemon"]["containers"][0]["env"]
        if each["name"] == PASSWORD
    ]
    assert VALUES["global"]["postgresqlSecretName"] == password["name"]


def test_the_output_of_runs_is_kept_where_the_guarded_webserver_looks_for_it() -> None:
    manager: Any = stored_logs(ENVIRONMENT[COMPUTE_LOGS_VARIABLE])
    address = urlsplit(ENVIRONMENT[COMPUTE_LOGS_VARIABLE])

    assert VALUES["computeLogManager"]["type"] == type(manager).__name__
    assert VALUES["computeLogManager"]["config"]["s3ComputeLogManager"] == {
        "bucket": address.netloc,
        "prefix": address.path.strip("/"),
        "skipEmptyFiles": manager._skip_empty_files,
        "uploadInterval": manager.upload_interval,
    }


def test_a_run_s_pod_is_that_of_the_run_launcher_s_file() -> None:
    """The code server makes tags from that file, so the chart's launcher and it must agree."""
    wanted = LAUNCHER["run_k8s_config"]
    found = CHART_LAUNCHER["runK8sConfig"]
    models = {
        "container_config": client.V1Container,
        "pod_spec_config": client.V1PodSpec,
        "pod_template_spec_metadata": client.V1ObjectMeta,
        "job_spec_config": client.V1JobSpec,
    }
    sections = {key: k8s_snake_case_dict(model, found[camel(key)]) for key, model in models.items()}
    # the chart gives the password to each run by itself, and knows one account, which is the daemon's
    expected = {key: dict(each) for key, each in wanted.items() if key in models}
    [password] = expected["container_config"].pop("env")

    assert password["name"] == PASSWORD
    assert password["value_from"]["secret_key_ref"]["name"] == VALUES["global"]["postgresqlSecretName"]
    assert sections["pod_spec_config"].pop("service_account_name") == LAUNCHER["service_account_name"]
    assert sections == {key: k8s_snake_case_dict(model, expected[key]) for key, model in models.items()}
    assert set(found) == {camel(key) for key in models}


def camel(key: str) -> str:
    return re.sub(r"_([a-z])", lambda hit: hit[1].upper(), key)


def test_runs_are_launched_as_by_the_run_launcher_s_file() -> None:
    assert VALUES["runLauncher"]["type"] == "K8sRunLauncher"
    assert (
        CHART_LAUNCHER["jobNamespace"] == LAUNCHER["job_namespace"] == KUSTOMIZATION["namespace"] == OURS["namespace"]
    )
    assert CHART_LAUNCHER["imagePullPolicy"] == LAUNCHER["image_pull_policy"]
    assert CHART_LAUNCHER["failPodOnRunFailure"] == LAUNCHER["fail_pod_on_run_failure"]
    assert CHART_LAUNCHER["envVars"] == LAUNCHER["env_vars"]
    assert VALUES["global"]["dagsterHome"] == LAUNCHER["dagster_home"]


def test_code_server_and_daemon_are_those_of_deploy_kubernetes() -> None:
    """What the chart lets one say of a pod: user, rights, place, resources, volumes."""
    for found, name in ((CODE_SERVER, "dagster-code-server"), (DAEMON, "dagster-daemon")):
        pod = PODS[name]
        [container] = pod["containers"]
        assert found["podSecurityContext"] == pod["securityContext"], name
        assert found["securityContext"] == container["securityContext"], name
        assert found["resources"] == container["resources"], name
        assert found.get("affinity", {}) == pod.get("affinity", {}), name
        # the spec of the code server has a fixed name here; the daemon's launcher is in the chart's dagster.yaml
        apart = {"spec"} if name == "dagster-code-server" else {"runs"}
        assert without(found["volumes"], apart) == without(pod["volumes"], apart), name
        unmounted = apart - {"spec"}
        assert found["volumeMounts"] == without(container["volumeMounts"], unmounted), name
        assert found["envConfigMaps"] == [each["configMapRef"] for each in container["envFrom"]], name
        own = {each["name"] for each in container["env"]} - {PASSWORD}
        assert {each["name"] for each in found["env"]} - {PASSWORD} == own, name
    own = {each["name"] for each in CODE_SERVER["env"]}
    [code_server] = PODS["dagster-code-server"]["containers"]
    assert own | {PASSWORD} == {each["name"] for each in code_server["env"]}
    assert {each["name"]: each.get("configMap") for each in CODE_SERVER["volumes"]}["spec"] == {
        "name": "synapse-ops-runs"
    }


def without(found: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    return [each for each in found if each["name"] not in names]


def test_the_code_location_is_found_under_its_name() -> None:
    """Dagster keeps the state of schedules and sensors by the location's name; policies know pods by a label."""
    [server] = VALUES["dagsterWebserver"]["workspace"]["servers"]
    arguments = PODS["dagster-code-server"]["containers"][0]["args"]
    of_chart = ["--host", "0.0.0.0", "--port", str(CODE_SERVER["port"])]

    assert [*CODE_SERVER["dagsterApiGrpcArgs"], *of_chart] == arguments
    assert server["name"] == CODE_SERVER["dagsterApiGrpcArgs"][-1]
    assert (server["host"], server["port"]) == (CODE_SERVER["name"], CODE_SERVER["port"])
    assert server["host"] == ENVIRONMENT["SYNAPSE_CODE_HOST"]
    assert (VALUES["nameOverride"], SUBCHART["nameOverride"]) == ("dagster-daemon", "dagster-code-server")


def test_every_image_is_ours_but_the_one_that_is_named() -> None:
    """The chart starts the code server by arguments alone, so the image must not add a program before them."""
    images = [
        CODE_SERVER["image"],
        DAEMON["image"],
        VALUES["dagsterWebserver"]["image"],
        VALUES["pipelineRun"]["image"],
    ]

    assert all(
        each == {"repository": "synapse-ops", "tag": __version__, "pullPolicy": "IfNotPresent"} for each in images
    )
    assert DAEMON["checkDbReadyInitContainer"] is VALUES["dagsterWebserver"]["checkDbReadyInitContainer"] is False
    assert "\nENTRYPOINT" not in DOCKERFILE


def test_the_chart_makes_no_account_no_role_and_no_webserver() -> None:
    accounts = {each["metadata"]["name"] for each in RESOURCES if each["kind"] == "ServiceAccount"}

    for part in (VALUES, SUBCHART):
        assert part["rbacEnabled"] is False
        assert part["serviceAccount"]["create"] is False
        assert part["serviceAccount"]["name"] in accounts
    assert VALUES["dagsterWebserver"]["replicaCount"] == 0
    assert VALUES["dagsterWebserver"]["nameOverride"] != "dagster-webserver"
    assert VALUES["ingress"]["enabled"] is False
    assert CODE_SERVER["includeConfigInLaunchedRuns"] == {"enabled": False}  # it would give runs a token


def test_the_rest_is_deploy_kubernetes_without_what_the_chart_brings() -> None:
    patches = [yaml.safe_load(each["patch"]) for each in OURS["patches"]]
    deleted = {(each["kind"], each["metadata"]["name"]) for each in patches if each.get("$patch") == "delete"}
    [generator] = OURS["configMapGenerator"]

    assert OURS["resources"] == ["../kubernetes"]
    assert deleted == {
        ("Deployment", "dagster-daemon"), ("Deployment", "dagster-code-server"), ("Service", "dagster-code-server"),
    }  # fmt: skip
    assert deleted <= {(each["kind"], each["metadata"]["name"]) for each in RESOURCES}
    assert generator["options"] == {"disableNameSuffixHash": True}
    assert [{"name": generator["name"]}] == DAEMON["envConfigMaps"]
